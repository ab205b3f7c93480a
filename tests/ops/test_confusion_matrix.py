from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from op_test import OpTest, Sample

import segkernels
from segkernels.ops import confusion_matrix
from segkernels.reference import confusion_matrix as reference

LABELS = torch.zeros(2, 4, 4, dtype=torch.int64)
LOGITS = torch.randn(2, 3, 4, 4)


def counted(prediction: torch.Tensor, target: torch.Tensor, num_classes: int, ignore_index: int | None = None) -> torch.Tensor:
    """numpy, pair by pair."""
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist()):
        if t != ignore_index and (0 <= p < num_classes or p != ignore_index):
            matrix[t, p] += 1
    return torch.from_numpy(matrix)


def oracle(prediction, target, num_classes, ignore_index=None):
    if prediction.is_floating_point():
        prediction = reference.predicted_labels(prediction, target)
    return counted(prediction.cpu(), target.cpu(), num_classes, ignore_index).to(target.device)


def upsampled(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class TestConfusionMatrix(OpTest):
    op = "confusion_matrix"
    function = staticmethod(confusion_matrix)
    oracle = staticmethod(oracle)
    differentiable = False

    def samples(self, device, dtype):
        def labels(*shape, classes=5):
            return torch.randint(0, classes, shape, device=device)

        def logits(*shape):
            # Distinct in every dtype.
            order = torch.rand(*shape, device=device).argsort(1)
            return (order - shape[1] // 2).to(dtype)

        with_void = labels(2, 9, 11)
        with_void[:, 3:5] = 255
        channels_last = torch.channels_last
        samples = [
            Sample("logits", (logits(2, 5, 9, 11), labels(2, 9, 11), 5)),
            Sample("logits channels_last", (logits(2, 5, 9, 11).contiguous(memory_format=channels_last), labels(2, 9, 11), 5)),
            Sample("logits, ignored", (logits(2, 5, 9, 11), with_void, 5, 255)),
            Sample("logits, several blocks", (logits(2, 21, 37, 61), labels(2, 37, 61, classes=21), 21)),
            Sample("logits [N, C]", (logits(3000, 4), labels(3000, classes=4), 4)),
            Sample("logits [N, C, L]", (logits(2, 4, 1500), labels(2, 1500, classes=4), 4)),
            Sample("logits [N, C, D, H, W]", (logits(2, 4, 3, 5, 7), labels(2, 3, 5, 7, classes=4), 4)),
            Sample("one class", (logits(2, 1, 5, 5), labels(2, 5, 5, classes=1), 1)),
            Sample("many classes", (logits(1, 150, 9, 8), labels(1, 9, 8, classes=150), 150)),
            Sample("upsampled 8x", (torch.randn(2, 5, 5, 7, device=device).to(dtype), labels(2, 33, 50), 5)),
            Sample("upsampled 2x", (torch.randn(2, 5, 6, 4, device=device).to(dtype), labels(2, 12, 8), 5)),
            Sample("upsampled 30x", (torch.randn(1, 3, 2, 3, device=device).to(dtype), labels(1, 60, 90, classes=3), 3)),
            Sample("upsampled 1.3x", (torch.randn(1, 5, 9, 11, device=device).to(dtype), labels(1, 12, 14), 5)),
            Sample("upsampled in height only", (torch.randn(1, 5, 4, 11, device=device).to(dtype), labels(1, 12, 11), 5)),
            Sample("upsampled from one pixel", (torch.randn(2, 5, 1, 1, device=device).to(dtype), labels(2, 12, 11), 5)),
            Sample("upsampled channels_last",
                   (torch.randn(2, 5, 5, 7, device=device).to(dtype).contiguous(memory_format=channels_last),
                    labels(2, 33, 50), 5)),
            Sample("labels", (labels(2, 33, 41), labels(2, 33, 41), 5)),
            Sample("labels [N]", (labels(3001), labels(3001), 5)),
            Sample("labels [N, D, H, W]", (labels(2, 3, 4, 5), labels(2, 3, 4, 5), 5)),
            Sample("labels, ignored", (labels(2, 9, 11), with_void, 5, 255)),
            Sample("labels, ignored in both", (with_void.flip(0, 1), with_void, 5, 255)),
            Sample("labels, a class ignored", (labels(2, 9, 11), labels(2, 9, 11), 5, 2)),
            Sample("labels, negative ignored", (labels(99), torch.where(labels(99) == 3, -9, labels(99)), 5, -9)),
            Sample("empty", (labels(0, 3, 3), labels(0, 3, 3), 5)),
            Sample("empty logits", (logits(0, 5, 3, 3), labels(0, 3, 3), 5)),
            Sample("no pixels", (logits(2, 5, 0, 3), labels(2, 0, 3), 5)),
        ]  # fmt: skip
        return [replace(sample, grad=()) for sample in samples]


class TestLabels:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
    @pytest.mark.parametrize("target_dtype", [torch.uint8, torch.int64])
    def test_dtypes(self, dtype, target_dtype):
        classes = 2 if dtype is torch.bool else 100
        prediction = torch.randint(0, classes, (5, 301))
        target = torch.randint(0, classes, (5, 301))
        actual = confusion_matrix(prediction.to(dtype), target.to(target_dtype), classes)
        assert torch.equal(actual, counted(prediction, target, classes))

    def test_every_uint8_is_a_class(self):
        labels = torch.arange(256).to(torch.uint8)
        assert torch.equal(confusion_matrix(labels, labels, 256), torch.eye(256, dtype=torch.int64))

    def test_ignore_index_that_the_dtype_cannot_hold(self):
        labels = torch.tensor([0, 1, 255], dtype=torch.uint8)
        assert confusion_matrix(labels, labels, 256, ignore_index=-1).trace() == 3

    @pytest.mark.parametrize("count", [7, 8, 64, 300])
    def test_runs_of_one_class(self, count):
        """Runs that start and end anywhere, and ignored and predicted labels within them."""
        target = torch.repeat_interleave(torch.tensor([0, 1, 1, 255, 2, 0]), torch.tensor([count, 3, count, 9, 1, count]))
        prediction = target.clamp(max=2)
        prediction[count // 2] = 1
        for dtype in (torch.int64, torch.uint8):
            actual = confusion_matrix(prediction.to(dtype), target.to(dtype), 3, ignore_index=255)
            assert torch.equal(actual, counted(prediction, target, 3, 255))

    def test_one_class_dominates(self):
        target = torch.zeros(4, 200, 200, dtype=torch.int64)
        target[0, 0, :3] = 20
        assert confusion_matrix(target, target, 21).diagonal().tolist() == [4 * 200 * 200 - 3, *[0] * 19, 3]

    @pytest.mark.parametrize("value", [3, -1, 2**31, 2**32, 2**32 + 1, -(2**63), 255])
    @pytest.mark.parametrize("argument", [0, 1])
    @pytest.mark.parametrize("place", [0, 7, 16, 98])
    def test_label_outside(self, value, argument, place):
        labels = [torch.randint(0, 3, (99,)) for _ in range(2)]
        labels[argument][place] = value
        name = ("prediction", "target")[argument]
        for kwargs in ({}, {"ignore_index": 100}):
            with pytest.raises(ValueError, match=rf"{name}: expected labels in \[0, 3\).*got {value} \(1 such"):
                confusion_matrix(*labels, 3, **kwargs)
        matrix, invalid = torch.ops.segkernels.confusion_matrix(*labels, 3, None)
        assert matrix.sum() == 98
        assert invalid.tolist() == [1 - argument, argument]
        assert confusion_matrix(*labels, 3, ignore_index=value).sum() == 98

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
    def test_label_outside_in_narrow_dtypes(self, dtype):
        good = torch.zeros(20, dtype=torch.int64)
        bad = torch.full((20,), 255 if dtype is torch.uint8 else -1, dtype=dtype)
        with pytest.raises(ValueError, match=r"20 such labels"):
            confusion_matrix(good, bad, 200)
        with pytest.raises(ValueError, match="prediction"):
            confusion_matrix(bad, good, 200)


class TestLogits:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_special_values_as_torch_argmax(self, dtype, channels_last):
        values = torch.tensor([float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 6e-8])
        logits = values[torch.randint(0, len(values), (2, 6, 40, 50))].to(dtype)
        if channels_last:
            logits = logits.contiguous(memory_format=torch.channels_last)
        target = torch.randint(0, 6, (2, 40, 50))
        assert torch.equal(confusion_matrix(logits, target, 6), counted(logits.argmax(1), target, 6))

    def test_ties_take_the_lowest_class(self):
        target = torch.zeros(1, 8, 8, dtype=torch.int64)
        for logits in (torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 3, 3)):
            assert confusion_matrix(logits, target, 4)[0, 0] == 64

    def test_nan_is_not_class_zero_when_upsampled(self):
        logits = torch.zeros(1, 4, 2, 2)
        logits[0, 2] = float("nan")
        assert confusion_matrix(logits, torch.zeros(1, 9, 9, dtype=torch.int64), 4)[0].tolist() == [0, 0, 81, 0]

    def test_infinite_logits_upsampled(self):
        logits = torch.randn(1, 4, 5, 5)
        logits[0, 1] = -float("inf")
        logits[0, 2, 2, 2] = float("inf")
        target = torch.randint(0, 4, (1, 19, 23))
        expected = counted(upsampled(logits, (19, 23)).argmax(1), target, 4)
        assert torch.equal(confusion_matrix(logits, target, 4), expected)

    @pytest.mark.parametrize("tier", ["cpu", "reference"])
    @pytest.mark.parametrize(("source", "size"), [((65, 65), (513, 513)), ((64, 48), (256, 192)), ((20, 30), (27, 31))])
    def test_upsampled_labels_are_those_of_interpolate(self, tier, source, size):
        """Except where the two largest interpolated logits are within rounding of each other."""
        logits = torch.randn(1, 21, *source)
        full = upsampled(logits, size)
        exact = upsampled(logits.double(), size).topk(2, 1).values
        clear = exact[:, 0] - exact[:, 1] > 8 * torch.finfo(torch.float32).eps * exact.abs().amax(1)
        # The pixel's own class as its target: the columns of row c are where interpolate says c.
        target = torch.where(clear, full.argmax(1), 255)
        with segkernels.backend(tier):
            matrix = confusion_matrix(logits, target, 21, ignore_index=255)
        assert torch.equal(matrix, matrix.diagonal().diag())
        assert matrix.sum() == clear.sum() > 0.99 * clear.numel()

    def test_logits_are_not_copied(self):
        """The memory that one call takes is far below the logits', in either layout, and below the upsampled ones'."""
        logits = torch.randn(2, 8, 128, 128)
        target = torch.randint(0, 8, (2, 128, 128))
        small = torch.randn(2, 8, 16, 16)
        for prediction in (logits, logits.contiguous(memory_format=torch.channels_last), small):
            with torch.profiler.profile(profile_memory=True) as profile:
                confusion_matrix(prediction, target, 8)
            taken = sum(max(0, event.cpu_memory_usage) for event in profile.events())
            assert taken < 64 * 1024

    def test_requires_no_gradient(self):
        logits = LOGITS.clone().requires_grad_()
        assert not confusion_matrix(logits, LABELS, 3).requires_grad


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ((LABELS, LABELS, 0), ValueError, "num_classes"),
            ((LABELS, LABELS.float(), 3), TypeError, "target: expected labels"),
            ((LABELS.to(torch.complex64), LABELS, 3), TypeError, "prediction: expected labels"),
            ((LABELS[:1], LABELS, 3), ValueError, "prediction: expected labels of the target's shape"),
            ((LOGITS[:1], LABELS, 3), ValueError, r"prediction: expected logits \[N, C, \*\]"),
            ((LOGITS[0], LABELS, 3), ValueError, r"prediction: expected logits \[N, C, \*\]"),
            ((LOGITS, LABELS, 4), ValueError, "prediction: expected logits of 4 classes"),
            ((LOGITS, LABELS[:, :3], 3), ValueError, "no larger"),
            ((LOGITS[:, :, :0], LABELS, 3), ValueError, "no larger"),
            ((LOGITS[..., 0], LABELS[:, :3, 0], 3), ValueError, "no larger"),
            ((LABELS.to("meta"), LABELS, 3), ValueError, "one device"),
        ],
    )
    def test_bad_input(self, arguments, error, match):
        with pytest.raises(error, match=match):
            confusion_matrix(*arguments)

    @pytest.mark.parametrize(
        "arguments",
        [
            (LABELS, LABELS, 0),
            (LABELS[:1], LABELS, 3),
            (LOGITS, LABELS, 4),
            (LOGITS, LABELS[:, :3], 3),
            (LOGITS, LABELS[:1], 3),
        ],
    )
    def test_the_op_checks_for_itself(self, arguments):
        with pytest.raises(RuntimeError):
            torch.ops.segkernels.confusion_matrix(*arguments, None)

    def test_label_outside_under_compile(self):
        compiled = torch.compile(confusion_matrix, fullgraph=True, backend="aot_eager")
        assert compiled(LABELS, LABELS, 3)[0, 0] == 32
        with pytest.raises(RuntimeError, match="outside"):
            compiled(LABELS + 3, LABELS, 3)
