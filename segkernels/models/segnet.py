"""SegNet (Badrinarayanan, Kendall, Cipolla 2015): VGG16 in the encoder, its mirror image in the decoder."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from segkernels.models._registry import check_input, register_model
from segkernels.models._semantic import FCNHead, add_aux, read_semantic
from segkernels.models._weights import Weights, load_state
from segkernels.models.vgg import load_features, mirrored_stages, pool_with_switches, pooled_with_switches, vgg16_features
from segkernels.nn import MaxUnpool2d

_STRIDE = 32


def _decoder(num_classes: int) -> nn.ModuleList:
    """The encoder's stages backwards; the last convolution gives the logits."""
    stages = []
    for stage in mirrored_stages(64, num_classes):
        layers: list[nn.Module] = []
        for in_channels, out_channels in stage:
            layers += [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
        stages.append(layers)
    del stages[-1][-2:]
    return nn.ModuleList(nn.Sequential(*layers) for layers in stages)


class SegNet(nn.Module):
    """See :func:`segnet`."""

    def __init__(self, in_channels: int = 3, num_classes: int = 21, aux_loss: bool = False) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = vgg16_features(in_channels, batch_norm=True, pool=pool_with_switches)
        self.unpool = MaxUnpool2d(2)
        self.decoder = _decoder(num_classes)
        self.aux_classifier = FCNHead(512, num_classes) if aux_loss else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        check_input(input, self.in_channels, _STRIDE)
        x, switches = pooled_with_switches(self.encoder, input)
        deepest = x
        for stage in self.decoder:
            indices, size = switches.pop()
            x = stage(self.unpool(x, indices, output_size=size))
        return add_aux(OrderedDict(out=x), self.aux_classifier, deepest, input.shape[2:])


@register_model
def segnet(
    *,
    in_channels: int = 3,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights: Weights | None = None,
    weights_backbone: Weights | None = None,
    progress: bool = True,
) -> SegNet:
    """SegNet: 13 convolutions of VGG16, 13 mirrored ones, and unpooling with the encoder's own indices between them.

    Every convolution but the last has batch normalisation and ReLU; weights start from He's initialisation, as in the
    paper. Between encoder and decoder travel uint8 window offsets, an eighth of the memory of int64 positions. 29,455,125
    parameters with the defaults.

    Args:
        in_channels: channels of the input.
        num_classes: channels of the logits.
        aux_loss: True adds an FCN head on the encoder's last map, whose logits are ``aux``. None (default): where the
            weights have one.
        weights: path of a state dict of this model to load, strictly.
        weights_backbone: a member of :class:`VGG16_BN_Weights`, or the path of a state dict of torchvision's ``vgg16_bn``
            (three input channels), for the encoder; not read where ``weights`` is given.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.

    Returns:
        SegNet: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``. H and W are at least 32 and need not
        be multiples of it: each unpooling restores the size that its pooling had.

    Raises:
        ValueError: from ``forward``, for another rank, number of channels, or a smaller input.
    """
    state, has_aux = read_semantic("segnet", weights, progress, num_classes, aux_loss)
    model = SegNet(in_channels, num_classes, has_aux)
    if state is not None:
        load_state(model, state, weights)
    else:
        load_features(model.encoder, weights_backbone, progress, batch_norm=True)
    return model
