"""U-Net on any encoder, with the decoder and the keys of segmentation_models_pytorch's ``Unet`` (SMP)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from segkernels.models._encoders import get_encoder
from segkernels.models._registry import check_input, register_model
from segkernels.models._semantic import FCNHead, add_aux, read_semantic
from segkernels.models._weights import StateDict, Weights, load_backbone, load_state
from segkernels.ops import upsample_nearest2d


def _conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)
    )


class _DecoderBlock(nn.Module):
    """Nearest upsampling to the next larger map, that map beside it if there is one, two convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn_relu(in_channels + skip_channels, out_channels)
        self.conv2 = _conv_bn_relu(out_channels, out_channels)

    def forward(self, input: torch.Tensor, size: Sequence[int], skip: torch.Tensor | None) -> torch.Tensor:
        x = upsample_nearest2d(input, size)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        return self.conv2(self.conv1(x))


class _Decoder(nn.Module):
    def __init__(self, encoder_channels: Sequence[int], channels: Sequence[int], center: bool) -> None:
        super().__init__()
        deepest, *skips = encoder_channels[::-1]
        self.center = nn.Sequential(*(_conv_bn_relu(deepest, deepest) for _ in range(2))) if center else nn.Identity()
        blocks = zip((deepest, *channels), (*skips, 0), channels)
        self.blocks = nn.ModuleList(_DecoderBlock(*block) for block in blocks)

    def forward(self, maps: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """From maps of growing strides to one of the given size."""
        deepest, *skips = reversed(maps)
        x = self.center(deepest)
        sizes = [*(skip.shape[2:] for skip in skips), size]
        for block, block_size, skip in zip(self.blocks, sizes, (*skips, None)):
            x = block(x, block_size, skip)
        return x


class EncoderUNet(nn.Module):
    """See :func:`encoder_unet`."""

    def __init__(
        self,
        encoder_name: str = "resnet34",
        num_classes: int = 1,
        in_channels: int = 3,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        aux_loss: bool = False,
    ) -> None:
        super().__init__()
        spec = get_encoder(encoder_name)
        if len(decoder_channels) != len(spec.maps):
            raise ValueError(f"decoder_channels: expected {len(spec.maps)} numbers, got {tuple(decoder_channels)}")
        self.in_channels = in_channels
        self.maps = spec.maps
        self.encoder = spec.build(in_channels)
        channels: dict[str, int] = self.encoder.channels  # type: ignore[assignment]
        self.decoder = _Decoder([channels[name] for name in spec.maps], decoder_channels, spec.center)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels[-1], num_classes, 3, padding=1))
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        head = self.segmentation_head[0]
        nn.init.xavier_uniform_(head.weight)  # type: ignore[arg-type]
        nn.init.zeros_(head.bias)  # type: ignore[arg-type]
        self.aux_classifier = FCNHead(channels[spec.maps[-1]], num_classes) if aux_loss else None

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        # Below that VGG16's last pooling has nothing left.
        check_input(input, self.in_channels, 32)
        maps = self.encoder(input)
        x = self.decoder([maps[name] for name in self.maps], input.shape[2:])
        result = OrderedDict(out=self.segmentation_head(x))
        return add_aux(result, self.aux_classifier, maps[self.maps[-1]], input.shape[2:])


@register_model
def encoder_unet(
    *,
    encoder_name: str = "resnet34",
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 1,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
) -> EncoderUNet:
    """U-Net whose encoder is a classifier's, as SMP's ``Unet(encoder_name, classes=num_classes)`` builds it.

    Five maps of strides 2 to 32; five blocks of nearest upsampling, concatenation (upsampled channels first) and two 3x3
    convolutions with BatchNorm; a 3x3 convolution to the logits. On VGG16 two more convolutions follow the last pooling.
    24,436,369 parameters with the defaults.

    Args:
        encoder_name: ``"resnet18"``, ``"resnet34"`` (default), ``"resnet50"``, ``"resnet101"``, ``"resnet152"``, ``"vgg16"``,
            ``"vgg16_bn"``, ``"mobilenet_v2"``, ``"mobilenet_v3_large"`` or ``"mobilenet_v3_small"``.
        weights: path of a state dict of this model, or of SMP's ``Unet`` with its default decoder, to load strictly: the keys
            are the same (see below).
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: channels of the logits; 1 for foreground against the rest.
        aux_loss: True adds an FCN head on the deepest map, whose logits are ``aux``. None (default): where the
            weights have one.
        weights_backbone: a member of the enum of torchvision's classifier of the encoder's name, :class:`ResNet34_Weights`
            for the default, or the path of its state dict; not read where ``weights`` is given.
        in_channels: channels of the input.
        decoder_channels: output channels of the five blocks, the deepest first.

    ================================  ==================================================================
    Keys, here and in SMP             What they are
    ================================  ==================================================================
    ``encoder.*``                     torchvision's keys of the classifier, without its linear layers
    ``decoder.center.{0,1}.{0,1}.*``  VGG16's extra convolutions (0) and their BatchNorm (1)
    ``decoder.blocks.N.conv1.0.*``    first convolution of block N, ``.1.*`` its BatchNorm
    ``decoder.blocks.N.conv2.0.*``    the second
    ``segmentation_head.0.*``         the logits
    ================================  ==================================================================

    MobileNet's ``encoder.*`` are ``encoder.features.*`` in SMP; ``weights`` takes both.

    Returns:
        EncoderUNet: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``. H and W are at least 32 and need
        not be multiples of it: each block upsamples to the size of the map that it meets.

    Raises:
        ValueError: for an unknown encoder, a wrong number of ``decoder_channels`` or weights of another model, and from
            ``forward`` for another rank, number of channels, or a smaller input.
    """
    state, has_aux = read_semantic("encoder_unet", weights, progress, num_classes, aux_loss)
    model = EncoderUNet(encoder_name, num_classes, in_channels, decoder_channels, has_aux)
    spec = get_encoder(encoder_name)
    if state is not None:
        load_state(model, _from_smp(state, spec.prefix), weights)
    else:
        load_backbone(model.encoder, weights_backbone, progress, spec.head, spec.prefix, encoder_name)
    return model


def _from_smp(state: StateDict, prefix: str) -> StateDict:
    theirs = f"encoder.{prefix}"
    return {f"encoder.{key.removeprefix(theirs)}" if key.startswith(theirs) else key: value for key, value in state.items()}
