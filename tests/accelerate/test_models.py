"""Models of other libraries: outputs and gradients stay what they were, and restore() gives the model back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from same_results import Calls, assert_equal, needs_kernels, results, tensors
from torch import nn

import segkernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("one_thread")]

IMAGE = (2, 3, 64, 64)


@pytest.fixture(scope="module")
def one_thread():
    # Threads that wait for each other on a busy machine take longer than one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check(model, *inputs, replaced, rtol=1e-4):
    """``replaced``: the ops that the model runs on when accelerated."""
    reference = copy.deepcopy(model)
    keys = list(model.state_dict())
    report = segkernels.accelerate(model)
    assert bool(report.replaced) == bool(replaced) and list(model.state_dict()) == keys
    with Calls() as recorded:
        ours = results(model, *inputs)
    assert {name for name in recorded.names if not name.endswith("_backward")} == replaced
    assert_equal(ours, results(reference, *inputs), rtol)
    # Running statistics differ by rounding.
    model.load_state_dict(reference.state_dict())
    assert segkernels.restore(model) == len(report.replaced)
    assert list(model.state_dict()) == keys and [type(m) for m in model.modules()] == [type(m) for m in reference.modules()]
    model.eval(), reference.eval()
    with torch.no_grad():
        for a, b in zip(tensors(model(*inputs[:1])), tensors(reference(*inputs[:1]))):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["fcn", "deeplabv3"])
def test_torchvision_semantic(name):
    """With six blocks instead of sixteen."""
    torchvision = pytest.importorskip("torchvision")
    resnet = torchvision.models.resnet
    backbone = resnet.ResNet(resnet.Bottleneck, [1, 1, 2, 2], replace_stride_with_dilation=[False, True, True])
    build = getattr(getattr(torchvision.models.segmentation, name), f"_{name}_resnet")
    check(build(backbone, 5, True), torch.randn(2, 3, 48, 48), replaced={"max_pool2d", "conv2d"})


def boxes_and_masks(size, count=3):
    corner = torch.rand(count, 2) * size / 2
    boxes = torch.cat([corner, corner + size / 8 + torch.rand(count, 2) * size / 3], 1)
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
    return {"boxes": boxes, "labels": torch.randint(1, 5, (count,)), "masks": masks}


def mask_rcnn(size=64):
    detection = pytest.importorskip("torchvision.models.detection")
    backbone = detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    return detection.MaskRCNN(
        backbone, num_classes=5, min_size=size, max_size=size,
        rpn_post_nms_top_n_train=50, rpn_post_nms_top_n_test=20, box_batch_size_per_image=8, box_score_thresh=0.0,
    )  # fmt: skip


def test_mask_rcnn():
    model = mask_rcnn()
    images, targets = list(torch.rand(2, 3, 64, 64)), [boxes_and_masks(64), boxes_and_masks(64)]
    check(model, images, targets, replaced={"max_pool2d", "multiscale_roi_align", "conv_transpose2d"})


@pytest.mark.parametrize(
    ("name", "options", "replaced"),
    [
        ("Unet", {}, {"max_pool2d"}),
        ("UnetPlusPlus", {"decoder_channels": (32, 16, 16, 8, 8)}, {"max_pool2d"}),
        ("Linknet", {}, {"max_pool2d"}),
        ("FPN", {}, {"max_pool2d", "upsample_bilinear2d"}),
        ("PSPNet", {}, {"max_pool2d", "upsample_bilinear2d"}),
        ("DeepLabV3Plus", {}, {"max_pool2d", "conv2d", "upsample_bilinear2d"}),
        ("DeepLabV3Plus", {"encoder_name": "mobilenet_v2"}, {"conv2d", "upsample_bilinear2d"}),
        ("Segformer", {"encoder_name": "mit_b0"}, {"upsample_bilinear2d"}),
    ],
)
def test_smp(name, options, replaced):
    smp = pytest.importorskip("segmentation_models_pytorch")
    options = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 32, **options}
    check(getattr(smp, name)(**options), torch.randn(IMAGE), replaced=replaced)


def test_monai():
    nets = pytest.importorskip("monai.networks.nets")
    image = torch.randn(2, 1, 64, 64)
    check(nets.SegResNet(2, 8, 1, 3), image, replaced={"upsample_bilinear2d"})
    check(nets.BasicUNet(2, 1, 3, features=(8, 8, 16, 16, 32, 8)), image, replaced={"max_pool2d", "conv_transpose2d"})
    # The transposed convolutions of its UNet have kernels of 3, which torch does as fast.
    check(nets.UNet(2, 1, 3, channels=(8, 16, 32), strides=(2, 2), num_res_units=1), image, replaced=set())
