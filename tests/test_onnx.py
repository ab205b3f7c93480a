"""Exported models hold standard ONNX ops only, and onnxruntime agrees with eager."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import segkernels
from segkernels import models, ops
from segkernels.nn import ConvTranspose2d, MaxPool2d, MaxUnpool2d, RoIAlign, Upsample

BOXES = torch.tensor([[0, 1.3, 2.1, 9.8, 11.4], [1, 0, 0, 15.9, 12.2], [1, 4.5, 3.5, 5.1, 3.9], [0, -3, -2, 20, 17]])


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


def exported(module: nn.Module, inputs: Sequence[torch.Tensor], **options: Any) -> Any:
    pytest.importorskip("onnxscript")
    table = segkernels.onnx.translation_table()
    options = {"dynamo": True, "verbose": False, "custom_translation_table": table, **options}
    proto = torch.onnx.export(module.eval(), tuple(inputs), **options).model_proto
    assert not proto.functions
    assert {node.domain for node in proto.graph.node} <= {""}
    return proto


def run(proto: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = runtime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return [torch.from_numpy(value) for value in session.run(None, {n: x.numpy() for n, x in zip(names, inputs)})]


def check(module: nn.Module | Callable[..., Any], *inputs: torch.Tensor) -> list[str]:
    """Exports, runs and compares; returns the op types."""
    module = module if isinstance(module, nn.Module) else Call(module)
    proto = exported(module, inputs)
    compare(module, proto, inputs)
    return [node.op_type for node in proto.graph.node]


def compare(module: nn.Module, proto: Any, inputs: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        expected = module(*inputs)
    if isinstance(expected, torch.Tensor):
        expected = [expected]
    elif isinstance(expected, OrderedDict):
        expected = list(expected.values())
    found = run(proto, inputs)
    assert len(found) == len(expected)
    for ours, theirs in zip(expected, found):
        assert ours.dtype == theirs.dtype
        tolerance = 1e-3 if ours.dtype == torch.float16 else 1e-5
        torch.testing.assert_close(theirs, ours, rtol=tolerance, atol=tolerance)


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_roi_align() -> None:
    poolers = [RoIAlign((3, 5), 0.75, ratio, aligned) for aligned in (False, True) for ratio in (2, 0)]

    # A function that calls them all: an export costs seconds.
    def function(input: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return *(pool(input, boxes) for pool in poolers), poolers[0](input.half(), boxes)

    assert check(function, image(2, 3, 14, 17), BOXES).count("RoiAlign") == 5


class EncoderDecoder(nn.Module):
    """SegNet in small: sizes odd and even, the decoder unpools with the encoder's indices."""

    def __init__(self, index_dtype: torch.dtype) -> None:
        super().__init__()
        self.pool = MaxPool2d(2, return_indices=True, index_dtype=index_dtype)
        self.unpool = MaxUnpool2d(2)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, first = self.pool(input)
        y, second = self.pool(x)
        y = self.unpool(y, second, output_size=x.shape)
        return self.unpool(y, first, output_size=input.shape), first, second


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.uint8], ids=["int64", "uint8"])
def test_max_pool_and_unpool(index_dtype: torch.dtype) -> None:
    # 18x20, 9x10, 4x5: the inner unpooling has another size than the default, the outer one the default.
    kinds = check(EncoderDecoder(index_dtype), image(2, 3, 18, 20))
    assert kinds.count("MaxPool") == 2 and kinds.count("MaxUnpool") == 1 and kinds.count("ScatterElements") == 1


def test_max_pool_windows() -> None:
    def function(input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = [ops.max_pool2d(input, 2)]
        results += torch.ops.segkernels.max_pool2d(input, [2, 2], [2, 2], [0, 0], [1, 1], False, 0)
        for dtype in (torch.int64, torch.uint8):
            results += ops.max_pool2d(input, (3, 2), (2, 1), (1, 0), 1, True, True, dtype)
            results += ops.max_pool2d(input, 3, 2, 1, 2, return_indices=True, index_dtype=dtype)
        return tuple(results)

    check(function, image(2, 3, 12, 11))


def test_dynamic_sizes() -> None:
    class Model(EncoderDecoder):
        def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result, *_ = super().forward(input)
            size = input.shape[2:]
            return result, ops.upsample_bilinear2d(result, scale_factor=2), ops.upsample_argmax(input[:, :, ::2, ::2], size)

    axis = torch.export.Dim.DYNAMIC
    model = Model(torch.uint8)
    proto = exported(model, [image(2, 3, 18, 20)], dynamic_shapes=({0: axis, 2: axis, 3: axis},))
    compare(model, proto, [image(3, 3, 13, 23)])


def test_convolutions() -> None:
    def function(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            ops.conv2d(input, weight, bias, (2, 1), (1, 0), (1, 2)),
            ops.conv2d(input, weight[:, :1], bias, padding="same", groups=4),
            ops.conv_transpose2d(input, weight, bias, 3, (1, 0), (1, 2), dilation=(2, 1)),
            ops.conv_transpose1d(input[:, :, 0], weight[:, :, 0], None, 2, 1, 1),
            ops.depthwise_separable_conv2d(input, weight[:, :1], weight[:, :, :1, :1], bias, padding=1, activation="relu"),
            ops.multi_dilation_conv2d(input, [weight, weight[..., :1, :1]], [2, 1]),
            ops.multi_dilation_conv2d(input, weight, [1, 3]),
        )

    kinds = check(function, image(2, 4, 9, 10), 0.2 * image(4, 4, 3, 3), image(4))
    assert kinds.count("ConvTranspose") == 2


def test_conv_transpose_module() -> None:
    assert check(ConvTranspose2d(3, 5, 2, stride=2), image(2, 3, 7, 6)) == ["ConvTranspose"]


def test_upsample() -> None:
    def function(input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            Upsample(scale_factor=2)(input),
            Upsample(scale_factor=(2, 3), mode="bilinear")(input),
            Upsample((9, 20), mode="bilinear", align_corners=True)(input),
            ops.upsample_bilinear2d(input, (3, 1)),
            ops.upsample_argmax(input, (11, 30)),
            ops.upsample_argmax(input, 25, True, torch.uint8),
            ops.bed_of_nails(input, (2, 3)),
        )

    kinds = check(function, image(2, 5, 6, 7))
    assert kinds.count("Resize") == 6 and kinds.count("ArgMax") == 2


def test_upsample_by_rounded_ratios() -> None:
    def function(input: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            ops.upsample_bilinear2d(input, scale_factor=(1.7, 0.6)),
            ops.upsample_nearest2d(input, scale_factor=1.7),
            ops.upsample_nearest2d(input, (41, 5)),
        )

    check(function, image(1, 2, 7, 11))


def test_nms() -> None:
    corner = 8 * torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([corner, corner + 4], 1)
    check(lambda boxes, scores: ops.nms(boxes, scores, 0.3), boxes, image(40))


def test_unet() -> None:
    torch.manual_seed(0)
    kinds = check(models.unet(width=8, num_classes=3), image(1, 3, 33, 48))
    assert kinds.count("MaxPool") == 4 and kinds.count("ConvTranspose") == 4


def test_absent_ops_do_not_export() -> None:
    pytest.importorskip("onnxscript")
    present = {overload.name() for overload in segkernels.onnx.translation_table()}
    assert "segkernels::confusion_matrix" not in present and "segkernels::roi_align" in present


def test_import_is_lazy_and_names_the_extra() -> None:
    code = """
import sys
import segkernels
assert "segkernels.onnx" not in sys.modules and "onnxscript" not in sys.modules
sys.modules["onnxscript"] = None
try:
    segkernels.onnx.translation_table()
except ImportError as error:
    print(error)
"""
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["translation_table needs onnxscript: pip install 'segkernels[onnx]'"]
