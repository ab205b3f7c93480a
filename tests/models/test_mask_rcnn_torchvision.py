"""Mask R-CNN against torchvision's: state dicts, losses, gradients, proposals and detections with copied weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segkernels import models
from segkernels.models.detection import MaskRCNN, mask_rcnn
from segkernels.models.detection._fpn import FrozenBatchNorm2d

NAMES = ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"]
SMALL: dict[str, Any] = {
    "num_classes": 4,
    "min_size": 64,
    "max_size": 96,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_train": 50,
    "rpn_post_nms_top_n_test": 30,
    "rpn_batch_size_per_image": 32,
    "box_batch_size_per_image": 12,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 10,
}
SIZES = ((61, 83), (90, 64))
#: Resized by 1 and 0.5 exactly: torchvision rounds the ratio to float32 even for float64 images.
EXACT_SIZES = ((48, 61), (110, 96))


def theirs(name: str, **config: Any) -> nn.Module:
    detection = pytest.importorskip("torchvision.models.detection")
    return getattr(detection, name)(weights=None, weights_backbone=None, **(SMALL | config))


def images(dtype: torch.dtype, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[torch.Tensor]:
    return [torch.rand(3, *size, dtype=dtype) for size in sizes]


def targets(dtype: torch.dtype, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[dict[str, torch.Tensor]]:
    result = []
    for height, width in sizes:
        corner = torch.rand(3, 2, dtype=dtype) * 20
        boxes = torch.cat([corner, corner + 10 + torch.rand(3, 2, dtype=dtype) * 30], 1)
        y, x = torch.arange(height)[:, None], torch.arange(width)
        x1, y1, x2, y2 = boxes.int()[:, :, None, None].unbind(1)
        masks = (x >= x1) & (x < x2 - 2) & (y >= y1) & (y < y2) & ((x + y) % 5 > 0)
        result.append({"boxes": boxes, "labels": torch.tensor([1, 2, 3]), "masks": masks.to(torch.uint8)})
    return result


@pytest.mark.parametrize("name, count", [(NAMES[0], 44_454_513), (NAMES[1], 46_359_409)])
def test_state_dicts(name: str, count: int) -> None:
    with torch.device("meta"):
        peer, model = theirs(name, num_classes=91), getattr(models, name)()
    model.load_state_dict(peer.state_dict())
    peer.load_state_dict(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in peer.parameters()) == count
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [n for n, _ in peer.named_parameters()]


def test_transform() -> None:
    config = {"num_classes": 4, "min_size": (56, 64), "max_size": 80}
    with torch.device("meta"):
        peer, model = theirs(NAMES[0], **config), models.maskrcnn_resnet50_fpn(**config)
    batch, objects = images(torch.float32), targets(torch.float32)
    torch.manual_seed(1)  # which size is drawn
    got, sizes, resized = model.transform(batch, objects)
    torch.manual_seed(1)
    expected, expected_objects = peer.transform(batch, objects)
    assert sizes == expected.image_sizes
    torch.testing.assert_close(got, expected.tensors)
    for ours, others in zip(resized, expected_objects):
        torch.testing.assert_close(ours["boxes"], others["boxes"])
        assert torch.equal(ours["masks"], others["masks"])


# Normalising a few values by their own statistics amplifies the rounding of all layers before, hence float64; torchvision's
# labels of anchors, and with them that loss, stay float32.
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    peer, model = theirs(name, min_size=48), getattr(models, name)(**(SMALL | {"min_size": 48}))
    model.load_state_dict(peer.state_dict())
    batch, objects = images(torch.float64, EXACT_SIZES), targets(torch.float64, EXACT_SIZES)
    losses = []
    for each in (model, peer):
        torch.manual_seed(1)  # which boxes are drawn
        losses.append(each.double()(batch, objects))
        sum(losses[-1].values()).backward()
    assert list(losses[0]) == list(losses[1])
    for key, expected in losses[1].items():
        assert losses[0][key].item() == pytest.approx(expected.item(), rel=1e-7), key
    expected_gradients = dict(peer.named_parameters())
    for key, parameter in model.named_parameters():
        expected = expected_gradients[key].grad
        assert (parameter.grad - expected).norm() <= 1e-6 * expected.norm(), key
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, peer.state_dict()[key], rtol=1e-6, atol=1e-6)


def assert_same_detections(model: MaskRCNN, peer: nn.Module) -> None:
    batch = images(torch.float32)
    proposals = []
    hooks = [each.rpn.register_forward_hook(lambda *call: proposals.append(call[-1][0])) for each in (model, peer)]
    with torch.no_grad():
        results, expected = model.eval()(batch), peer.eval()(batch)
    for hook in hooks:
        hook.remove()
    for ours, others in zip(*proposals):
        torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-4)
    for ours, others in zip(results, expected):
        assert list(ours) == list(others)
        assert len(others["boxes"]) == 10
        assert torch.equal(ours["labels"], others["labels"])
        for key in ("boxes", "scores", "masks"):
            assert ours[key].dtype == others[key].dtype
            torch.testing.assert_close(ours[key], others[key], rtol=1e-4, atol=1e-4)


def test_detections_of_the_second_model() -> None:
    torch.manual_seed(0)
    peer = theirs(NAMES[1])
    model = models.maskrcnn_resnet50_fpn_v2(**SMALL)
    model.load_state_dict(peer.state_dict())
    assert_same_detections(model, peer)


def test_weights_freeze_the_first_model(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from torchvision.models.detection import MaskRCNN as TheirMaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    peer = TheirMaskRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), **SMALL)
    for key, buffer in peer.named_buffers():
        if "body" in key:
            values = torch.rand_like(buffer)
            buffer.copy_(values - 0.5 if key.endswith(("bias", "running_mean")) else values + 0.5)
    for scale in (1.0, 0.2):  # of what is added to the way around, so that activations stay in range
        for key, buffer in peer.named_buffers():
            if key.endswith("bn3.weight"):
                buffer.mul_(scale)
    path = tmp_path / "weights.pth"
    torch.save(peer.state_dict(), path)

    model = models.maskrcnn_resnet50_fpn(weights=path, **SMALL)
    assert isinstance(model.backbone.body.bn1, FrozenBatchNorm2d)
    assert model.state_dict().keys() == peer.state_dict().keys()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        n for n, p in peer.named_parameters() if p.requires_grad
    ]
    assert_same_detections(model, peer)

    with pytest.raises(ValueError, match="other shapes than this MaskRCNN: .* .another num_classes."):
        models.maskrcnn_resnet50_fpn(weights=path, **(SMALL | {"num_classes": 5}))


def test_members_of_enums(monkeypatch: pytest.MonkeyPatch) -> None:
    published = models.weights.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    with pytest.raises(ValueError, match="the enum for maskrcnn_resnet50_fpn_v2"):
        models.maskrcnn_resnet50_fpn_v2(weights=published)
    with pytest.raises(ValueError, match="num_classes: expected 91"):
        models.maskrcnn_resnet50_fpn(weights=published, num_classes=4)
    monkeypatch.setattr(mask_rcnn, "load_weights", lambda *args: None)
    assert models.maskrcnn_resnet50_fpn(weights=published).backbone.body.bn1.eps == 0


@pytest.mark.parametrize("layers, frozen", [(None, "conv1 layer1"), (0, "conv1 layer1 layer2 layer3 layer4"), (5, "")])
def test_trainable_layers(layers: int | None, frozen: str, tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(models.ResNetEncoder("resnet50").state_dict(), path)
    body = models.maskrcnn_resnet50_fpn(weights_backbone=path, trainable_backbone_layers=layers).backbone.body
    assert isinstance(body.layer4[0].bn1, FrozenBatchNorm2d)
    assert sorted({n.split(".")[0] for n, p in body.named_parameters() if not p.requires_grad}) == frozen.split()


def test_trainable_layers_out_of_range() -> None:
    with pytest.raises(ValueError, match="trainable_backbone_layers: expected 0 to 5, got 6"):
        models.maskrcnn_resnet50_fpn(trainable_backbone_layers=6)
