"""Mask R-CNN without torchvision: contract, errors, edge cases, training, host syncs, compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from segkernels.models.detection import AnchorGenerator, FastRCNNPredictor, MaskRCNN, MaskRCNNPredictor, _roi_heads, _rpn
from segkernels.models.detection._boxes import BACKGROUND, BETWEEN, first_of_each, match, sample
from segkernels.models.detection._fpn import ResNetFPN
from segkernels.models.detection.mask_rcnn import _current_keys

LOSSES = ["loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]
SMALL: dict[str, Any] = {
    "num_classes": 4,
    "min_size": 64,
    "max_size": 96,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_train": 50,
    "rpn_post_nms_top_n_test": 50,
    "box_batch_size_per_image": 16,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 10,
}


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.rand(3, *size) for size in sizes]


def target(boxes: list[list[float]], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Objects whose masks fill their boxes but for a column, of the classes 1, 2, ..."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, box in zip(masks, boxes):
        x1, y1, x2, y2 = map(int, box)
        mask[y1:y2, x1 : x2 - 1] = 1
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4).float(),
        "labels": torch.arange(len(boxes)) % 3 + 1,
        "masks": masks,
    }


def small(**config: Any) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(ResNetFPN("resnet18"), **(SMALL | config))


@pytest.fixture(scope="module")
def shared() -> MaskRCNN:
    """For tests that do not change it."""
    return small()


def training(shared: MaskRCNN) -> MaskRCNN:
    """Normalises by running statistics, which training would change."""
    for module in shared.modules():
        module.training = not isinstance(module, torch.nn.BatchNorm2d)
    return shared


def test_detections(shared: MaskRCNN) -> None:
    for size, result in zip([(61, 83), (90, 64)], shared.eval()(images((61, 83), (90, 64)))):
        assert list(result) == ["boxes", "labels", "scores", "masks"]
        count = len(result["boxes"])
        assert 0 < count <= 10
        assert result["boxes"].shape == (count, 4)
        assert result["labels"].dtype == torch.int64 and set(result["labels"].tolist()) <= {1, 2, 3}
        assert bool((result["scores"].diff() <= 0).all())
        assert result["masks"].shape == (count, 1, *size)
        assert 0 <= result["masks"].min() < result["masks"].max() <= 1
        limits = torch.tensor([size[1], size[0], size[1], size[0]])
        assert bool(((result["boxes"] >= 0) & (result["boxes"] <= limits * (1 + 1e-6))).all())


def test_no_detections() -> None:
    for threshold, dtype in ((None, torch.float32), (0.5, torch.bool)):
        model = small(box_score_thresh=1.0, mask_threshold=threshold).eval()
        for result in model(images((61, 83), (64, 64))):
            assert result["boxes"].shape == (0, 4)
            assert result["labels"].shape == result["scores"].shape == (0,)
            assert result["labels"].dtype == torch.int64
            assert result["masks"].dtype == dtype
        assert result["masks"].shape == (0, 1, 64, 64)


def test_mask_threshold(shared: MaskRCNN) -> None:
    image = images((61, 83))
    soft = shared.eval()(image)[0]["masks"]
    shared.transform.mask_threshold = 0.4
    hard = shared(image)[0]["masks"]
    shared.transform.mask_threshold = None
    assert hard.dtype == torch.bool and hard.shape == soft.shape
    decided = (soft - 0.4).abs() > 1e-5
    assert bool(hard.any()) and torch.equal(hard[decided], (soft >= 0.4)[decided])


def test_without_objects(shared: MaskRCNN) -> None:
    size = (64, 64)
    for targets in ([target([], size)], [target([], size), target([[8, 8, 40, 50]], size)]):
        losses = training(shared)(images(*[size] * len(targets)), targets)
        assert list(losses) == LOSSES
        assert all(bool(loss.isfinite()) for loss in losses.values())
        sum(losses.values()).backward()
        shared.zero_grad()
    only_background = training(shared)(images(size), [target([], size)])
    for name in ("loss_box_reg", "loss_mask", "loss_rpn_box_reg"):
        assert only_background[name].item() == 0


def test_training_lowers_the_losses() -> None:
    model = small(min_size=(56, 64))
    batch = images((64, 80), (72, 64))
    targets = [target([[8, 8, 40, 50], [30, 20, 70, 60]], (64, 80)), target([[4, 10, 44, 60]], (72, 64))]
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9)
    totals = []
    for _ in range(4):
        torch.manual_seed(1)
        loss = sum(model(batch, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.7 * totals[0]


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"boxes": [[8.0, 8, 8, 50]]}, ValueError, "invalid box .8.0, 8.0, 8.0, 50.0. for target at index 1"),
        ({"boxes": [[8.0, 8, float("nan"), 50]]}, ValueError, "for target at index 1"),
        ({"boxes": [[8, 8, 40, 50]]}, TypeError, "boxes of a floating-point dtype, got torch.int64"),
        ({"boxes": [8.0, 8, 40, 50]}, ValueError, "expected boxes of shape .4, 4., got .4. for target at index 1"),
        ({"labels": [1.0]}, TypeError, "labels of dtype int64, got torch.float32 for target at index 1"),
        ({"labels": [1, 2]}, ValueError, "labels of shape .1., got .2."),
        ({"masks": [[1]]}, ValueError, "masks of shape .1, 64, 64., got .1, 1."),
        ({"masks": None}, ValueError, "a Tensor named masks, got None for target at index 1"),
    ],
)
def test_wrong_targets(shared: MaskRCNN, change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = target([[8, 8, 40, 50]], (64, 64))
    bad = good | {key: value if value is None else torch.tensor(value) for key, value in change.items()}
    with pytest.raises(error, match=message):
        training(shared)(images((64, 64), (64, 64)), [good, bad])


def test_wrong_number_of_targets(shared: MaskRCNN) -> None:
    with pytest.raises(ValueError, match="one for each of 1 images, got 0"):
        training(shared)(images((64, 64)), [])
    with pytest.raises(ValueError, match="expected a dict for each image in training, got None"):
        training(shared)(images((64, 64)))


@pytest.mark.parametrize(
    "batch, error, message",
    [
        (torch.rand(1, 3, 64, 64), ValueError, "a list of at least one .3, H, W., got a Tensor"),
        ([], ValueError, "at least one .3, H, W., got none"),
        ([torch.rand(3, 64, 64), torch.rand(64, 64)], ValueError, "got shape .64, 64. at index 1"),
        ([torch.rand(1, 64, 64)], ValueError, "got shape .1, 64, 64. at index 0"),
        ([torch.zeros(3, 64, 64, dtype=torch.uint8)], TypeError, "floating-point dtype .*, got torch.uint8 at index 0"),
    ],
)
def test_wrong_images(shared: MaskRCNN, batch: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        shared.eval()(batch)


def test_wrong_configuration() -> None:
    with pytest.raises(ValueError, match="num_classes: expected an int"):
        MaskRCNN(ResNetFPN("resnet18"))
    with pytest.raises(ValueError, match="aspect_ratios: expected one for each of 2 maps, got 1"):
        AnchorGenerator(((32,), (64,)), ((1.0,),))
    with pytest.raises(ValueError, match="maps: expected 5, one for each of sizes, got 1"):
        AnchorGenerator()((64, 64), [torch.zeros(1, 1, 4, 4)])


def test_new_classes() -> None:
    model = small()
    model.roi_heads.box_predictor = FastRCNNPredictor(model.roi_heads.box_predictor.cls_score.in_features, 2)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(model.roi_heads.mask_predictor.conv5_mask.in_channels, 256, 2)
    assert set(model.eval()(images((64, 64)))[0]["labels"].tolist()) == {1}


class Copies(TorchDispatchMode):
    """Counts what the host sends to the device and waits for: copies that are neither from the device nor non-blocking."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        source = args[1] if func._schema.name == "aten::copy_" else args[0] if args else None
        if func._schema.name in ("aten::copy_", "aten::_to_copy") and source.device != result.device:
            self.count += not (kwargs.get("non_blocking") or args[2:3] == (True,))
        return result


@pytest.mark.parametrize("count", [1, 3])
def test_one_host_sync_a_batch(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device whatever depends on a value raises (nonzero, item, tolist, indices by mask); one call may."""
    model = small(mask_threshold=0.5).eval().to("meta")
    waited, tolist = [], torch.Tensor.tolist

    def counting(tensor: torch.Tensor) -> Any:
        if not tensor.is_meta:
            return tolist(tensor)
        waited.append(list(tensor.shape))
        return list(range(len(tensor)))

    monkeypatch.setattr(torch.Tensor, "tolist", counting)
    with torch.no_grad(), Copies() as copies:
        torch.ones(1).to("meta")
        assert copies.count == 1, "it counts"
        results = model([image.to("meta", non_blocking=True) for image in images(*[(64, 64)] * count)])
    assert [list(result["masks"].shape) for result in results] == [[n, 1, 64, 64] for n in range(count)]
    assert waited == [[count]] and copies.count == 1


@pytest.mark.gpu
def test_one_host_sync_on_a_gpu(recwarn: pytest.WarningsRecorder) -> None:
    model, batch = small().eval().cuda(), [image.cuda() for image in images((64, 64), (64, 64))]
    with torch.no_grad():
        model(batch)
        torch.cuda.set_sync_debug_mode("warn")
        recwarn.clear()
        try:
            model(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in recwarn if "synchronizing" in str(w.message)]) == 1


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_fixed_sizes_change_nothing(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU pads where the CPU looks; 5 proposals of an image, fewer than fit, and the classes of one sum to 1."""
    model = small(box_score_thresh=threshold, rpn_score_thresh=0.5).eval()
    batch = images((61, 83), (90, 64), (64, 64))
    with torch.no_grad():
        expected = model(batch)
        for module in (_rpn, _roi_heads):
            monkeypatch.setattr(module, "waits", lambda tensor: True)
        results = model(batch)
    assert sum(len(each["boxes"]) for each in expected) > 0
    for ours, exact in zip(results, expected):
        assert torch.equal(ours["labels"], exact["labels"])
        for key in ("boxes", "scores", "masks"):
            torch.testing.assert_close(ours[key], exact[key])


def test_first_of_each() -> None:
    order = torch.tensor([4, 1, 0, 3, 2, 5])
    chosen = torch.tensor([True, True, False, True, True, True])
    group = torch.tensor([0, 2, 2, 0, 2, 3])
    index, counts = first_of_each(order, chosen, group, 3, 2)
    assert counts.tolist() == [1, 0, 2]
    assert index[0, :1].tolist() == [3] and index[2].tolist() == [4, 1]
    index, counts = first_of_each(order[:0], chosen[:0], group, 2, 5)
    assert index.shape == (2, 0) and counts.tolist() == [0, 0]


def test_anchors_of_a_place() -> None:
    anchors = AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),))((64, 48), [torch.zeros(1, 1, 2, 3)])[0]
    assert anchors.shape == (18, 4)
    assert anchors[:3].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    # The second place of the second row: strides are 32 and 16.
    assert anchors[13].tolist() == [0, 16, 32, 48]


def test_match() -> None:
    iou = torch.tensor([[0.8, 0.5, 0.2, 0.4, 0.1], [0.1, 0.6, 0.1, 0.4, 0.6]])
    assert match(iou, 0.7, 0.3).tolist() == [0, BETWEEN, BACKGROUND, BETWEEN, BETWEEN]
    # Ties for an object's best overlap all count.
    assert match(iou, 0.7, 0.3, keep_best=True).tolist() == [0, 1, BACKGROUND, BETWEEN, 1]


def test_sample() -> None:
    labels = torch.tensor([0, 1, -1, 2, 0, 3, 0, -1, 0])
    positive, negative = sample(labels, 4, 0.5)
    assert len(positive) == 2 and set(positive.tolist()) < {1, 3, 5}
    assert len(negative) == 2 and set(negative.tolist()) < {0, 4, 6, 8}
    positive, negative = sample(labels, 100, 0.5)
    assert positive.tolist() == [1, 3, 5] and negative.tolist() == [0, 4, 6, 8]


def test_half_precision_and_memory_format(shared: MaskRCNN) -> None:
    batch, targets = images((64, 80)), [target([[8, 8, 40, 50]], (64, 80))]
    torch.manual_seed(1)
    expected = training(shared)(batch, targets)
    for half, tolerance in ((False, 1e-4), (True, 0.1)):
        shared.to(memory_format=torch.channels_last)
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = training(shared)(batch, targets)
            result = shared.eval()(batch)[0]
        for name, loss in losses.items():
            assert loss.dtype == torch.float32
            assert loss.item() == pytest.approx(expected[name].item(), rel=tolerance, abs=tolerance)
        sum(losses.values()).backward()
        shared.zero_grad()
        assert {result[key].dtype for key in ("boxes", "scores", "masks")} == {torch.float32}
    shared.to(memory_format=torch.contiguous_format)


def test_double() -> None:
    model = small().double().eval()
    result = model([image.double() for image in images((64, 80))])[0]
    assert {result[key].dtype for key in ("boxes", "scores", "masks")} == {torch.float64}


def test_inference_mode_before_training(shared: MaskRCNN) -> None:
    batch = images((64, 96))
    with torch.inference_mode():
        shared.eval()(batch)
    sum(training(shared)(batch, [target([[8, 8, 40, 50]], (64, 96))]).values()).backward()
    shared.zero_grad()


def test_compile_and_export_of_the_dense_part(shared: MaskRCNN) -> None:
    shared.eval()

    def dense(batch: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return shared.rpn.head(list(shared.backbone(batch).values()))

    batch = torch.randn(2, 3, 64, 96)

    class Dense(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.rpn = shared.backbone, shared.rpn

        def forward(self, batch: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
            return dense(batch)

    compiled = torch.compile(dense, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(Dense().eval(), (batch,), strict=False).module()
    for run in (compiled, exported):
        for got, expected in zip(sum(run(batch), []), sum(dense(batch), [])):
            torch.testing.assert_close(got, expected)


def test_old_keys() -> None:
    old = {
        "backbone.fpn.inner_blocks.0.weight": 0,
        "backbone.fpn.layer_blocks.3.bias": 1,
        "rpn.head.conv.weight": 2,
        "roi_heads.mask_head.mask_fcn1.weight": 3,
        "roi_heads.mask_head.mask_fcn4.bias": 4,
        "rpn.head.cls_logits.bias": 5,
        "backbone.fpn.inner_blocks.1.0.weight": 6,
    }
    assert _current_keys(old) == {
        "backbone.fpn.inner_blocks.0.0.weight": 0,
        "backbone.fpn.layer_blocks.3.0.bias": 1,
        "rpn.head.conv.0.0.weight": 2,
        "roi_heads.mask_head.0.0.weight": 3,
        "roi_heads.mask_head.3.0.bias": 4,
        "rpn.head.cls_logits.bias": 5,
        "backbone.fpn.inner_blocks.1.0.weight": 6,
    }
