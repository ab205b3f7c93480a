from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from same_results import calls
from torch import nn

from segkernels.nn import ASPP, BilinearConvTranspose2d, DepthwiseSeparableConv2d


def trained_norms(module):
    """Statistics and scales of norms that do something."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low in ((norm.running_mean, -1), (norm.running_var, 0.5), (norm.weight, -1), (norm.bias, -1)):
                nn.init.uniform_(tensor, low, 2)
    return module


def by_hand(module, image):
    for conv in (module.depthwise, module.pointwise):
        image = F.conv2d(image, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        image = conv.norm(image) if hasattr(conv, "norm") else image
        image = image.relu() if module.activation else image
    return image


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d, lambda channels: nn.GroupNorm(2, channels)])
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [8, 40], ids=["layer by layer", "fused"])
def test_separable_is_its_parts(norm, activation, training, width):
    module = DepthwiseSeparableConv2d(4, 6, 3, 2, 1, channel_multiplier=2, norm=norm, activation=activation)
    trained_norms(module).train(training)
    twin = copy.deepcopy(module)
    image = torch.randn(2, 4, 9, width, requires_grad=True)
    actual, expected = module(image), by_hand(twin, image)
    torch.testing.assert_close(actual, expected)
    seed = torch.randn_like(actual)
    for a, b in zip(
        torch.autograd.grad(actual, [image, *module.parameters()], seed),
        torch.autograd.grad(expected, [image, *twin.parameters()], seed),
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), twin.buffers())), "running statistics"


def test_separable_is_one_op_where_the_map_is_large():
    module = DepthwiseSeparableConv2d(4, 6, padding=1, norm=nn.BatchNorm2d).eval()
    for shape, format, fused in [
        ((2, 4, 64, 31), torch.contiguous_format, False),
        ((1, 4, 5, 32), torch.contiguous_format, True),
        ((1, 4, 15, 17), torch.channels_last, False),
        ((1, 4, 16, 16), torch.channels_last, True),
    ]:
        with torch.no_grad():
            ran = calls(module, torch.randn(shape).contiguous(memory_format=format))
        assert ran == ({"depthwise_separable_conv2d"} if fused else set())


@pytest.mark.parametrize("bias", [None, True])
def test_fuse_folds_the_norms(bias):
    module = trained_norms(
        DepthwiseSeparableConv2d(4, 6, padding="same", dilation=2, bias=bias, norm=nn.BatchNorm2d, activation="relu")
    )
    with pytest.raises(RuntimeError, match="eval"):
        module.fuse_()
    module.eval()
    image = torch.randn(2, 4, 7, 33)
    expected = by_hand(module, image)
    assert module.fuse_() is module
    torch.testing.assert_close(module(image), expected)
    names = {"depthwise.weight", "depthwise.bias", "pointwise.weight", "pointwise.bias"}
    assert set(module.state_dict()) == names
    module.fuse_()  # nothing left to fold
    with pytest.raises(TypeError, match="GroupNorm"):
        DepthwiseSeparableConv2d(4, 6, norm=lambda channels: nn.GroupNorm(2, channels)).eval().fuse_()


def test_separable_keys_and_arguments():
    module = DepthwiseSeparableConv2d(4, 6, norm=nn.BatchNorm2d)
    keys = {key.rsplit(".", 1)[0] for key in module.state_dict()}
    assert keys == {"depthwise", "depthwise.norm", "pointwise", "pointwise.norm"}
    assert module.depthwise.bias is None
    with pytest.raises(ValueError, match="activation"):
        DepthwiseSeparableConv2d(4, 6, activation="gelu")


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_bilinear_upsampling_starts_as_interpolation(scale):
    module = BilinearConvTranspose2d(3, scale)
    assert isinstance(module, nn.ConvTranspose2d)
    image = torch.randn(2, 3, 6, 7)
    expected = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
    actual = module(image)
    assert actual.shape == expected.shape
    inside = (..., slice(scale, -scale), slice(scale, -scale))
    torch.testing.assert_close(actual[inside], expected[inside])
    assert module.weight.requires_grad
    assert not BilinearConvTranspose2d(3, scale, learnable=False).weight.requires_grad


def test_aspp_is_torchvisions():
    peer = pytest.importorskip("torchvision.models.segmentation.deeplabv3").ASPP(8, (6, 12, 18), 5)
    ours = ASPP(8, (6, 12, 18), 5)
    ours.load_state_dict(peer.state_dict())
    image = torch.randn(2, 8, 17, 15)
    torch.testing.assert_close(ours.eval()(image), peer.eval()(image))
    for a, b in zip(ours.train().project[:3](torch.ones(2, 25, 3, 3)), peer.train().project[:3](torch.ones(2, 25, 3, 3))):
        torch.testing.assert_close(a, b)


def test_aspp_v2_sums_its_rates():
    module = ASPP(4, (6, 12, 18, 24), 3, variant="v2")
    image = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(module(image), sum(conv(image) for conv in module.convs))
    assert [conv.dilation[0] for conv in module.convs] == [6, 12, 18, 24]


@pytest.mark.parametrize("variant", ["v2", "v3"])
def test_separable_aspp(variant):
    module = ASPP(8, (2, 3), 6, variant=variant, separable=True).eval()
    assert sum(isinstance(part, DepthwiseSeparableConv2d) for part in module.modules()) == 2
    assert module(torch.randn(1, 8, 9, 7)).shape == (1, 6, 9, 7)
    dense = ASPP(8, (2, 3), 6, variant=variant)
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in dense.parameters())


def test_aspp_variant_is_checked():
    with pytest.raises(ValueError, match="variant"):
        ASPP(8, (6,), variant="v4")
    module = ASPP(8, (6,)).eval()
    assert module(torch.randn(1, 8, 5, 5)).shape == (1, 256, 5, 5), "one image, image pooling and BatchNorm"


def test_kernel_sharing_saves_parameters():
    """KSAC shares one 3x3 kernel between rates 6, 12 and 18: 62% fewer parameters than ASPP's branches."""
    channels, out_channels = 2048, 256
    unit = channels * out_channels

    def sizes(shared):
        module = ASPP(channels, (6, 12, 18), out_channels, shared=shared)
        convolutions = [p.numel() for p in module.convs.parameters() if p.dim() == 4]
        return convolutions, module.project[0].weight.numel()

    (plain, projection), (shared, _) = sizes(False), sizes(True)
    assert [size // unit for size in plain] == [1, 9, 9, 9, 1]  # 1x1, three 3x3, 1x1 of the image pooling
    assert [size // unit for size in shared] == [1, 9, 1]
    assert round(100 * (1 - sum(shared) / sum(plain))) == 62
    saved = 1 - (sum(shared) + projection) / (sum(plain) + projection)
    assert round(100 * saved, 1) == 60.8, "with the projection"


def aspp_by_hand(module, image):
    """The branches one by one, as the modules stand."""
    results = [conv(image) for conv in module.convs]
    return sum(results) if module.variant == "v2" else module.project(torch.cat(results, 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("variant", ["v2", "v3"])
def test_aspp_is_its_parts(variant, shared, training):
    module = trained_norms(ASPP(4, (2, 3, 5), 6, variant=variant, shared=shared, dropout=0.0)).train(training)
    twin = copy.deepcopy(module)
    image = torch.randn(2, 4, 9, 8, requires_grad=True)
    actual, expected = module(image), aspp_by_hand(twin, image)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    seed = torch.randn_like(actual)
    found = torch.autograd.grad(actual, [image, *module.parameters()], seed)
    wanted = torch.autograd.grad(expected, [image, *twin.parameters()], seed)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    for a, b in zip(module.buffers(), twin.buffers()):
        torch.testing.assert_close(a, b)


def test_shared_aspp_keeps_the_keys():
    plain, shared = ASPP(4, (2, 3, 5), 6), ASPP(4, (2, 3, 5), 6, shared=True)
    assert list(plain.state_dict()) == list(shared.state_dict())
    assert shared.convs[1][0].weight is shared.convs[3][0].weight
    assert shared.convs[1][1].weight is not shared.convs[3][1].weight, "a BatchNorm for each rate"
    with pytest.raises(ValueError, match="shared"):
        ASPP(4, (2, 3), separable=True, shared=True)
    with pytest.raises(ValueError, match="atrous_rates"):
        ASPP(4, ())


def test_aspp_runs_hooks_and_replaced_modules():
    module = ASPP(4, (2, 3), 6).eval()
    seen = []
    module.convs[1][0].register_forward_hook(lambda *parts: seen.append(1))
    image = torch.randn(1, 4, 7, 7)
    torch.testing.assert_close(module(image), aspp_by_hand(module, image))
    assert len(seen) == 2
    module.convs[2][0] = nn.Conv2d(4, 6, 5, padding=2)
    torch.testing.assert_close(module(image), aspp_by_hand(module, image))
