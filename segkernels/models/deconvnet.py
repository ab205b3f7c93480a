"""DeconvNet (Noh, Hong, Han 2015): VGG16 down to one vector, and its mirror image of unpooling and deconvolution."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from segkernels.models._registry import check_input, register_model
from segkernels.models._semantic import FCNHead, add_aux, read_semantic
from segkernels.models._weights import Weights, load_state
from segkernels.models.vgg import (
    initialize,
    load_features,
    mirrored_stages,
    pool_with_switches,
    pooled_with_switches,
    vgg16_features,
)
from segkernels.nn import ConvTranspose2d, MaxUnpool2d

# Five poolings and the 7x7 window of fc6.
_SMALLEST = 32 * 7


def _normalized(layer: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True)]


class DeconvNet(nn.Module):
    """See :func:`deconvnet`."""

    def __init__(self, in_channels: int = 3, num_classes: int = 21, width: int = 64, aux_loss: bool = False) -> None:
        super().__init__()
        self.in_channels = in_channels
        deepest, hidden = 8 * width, 64 * width
        self.encoder = vgg16_features(in_channels, width, batch_norm=True, pool=pool_with_switches)
        self.fc6 = nn.Sequential(*_normalized(nn.Conv2d(deepest, hidden, 7)))
        self.fc7 = nn.Sequential(*_normalized(nn.Conv2d(hidden, hidden, 1)))
        self.fc6_deconv = nn.Sequential(*_normalized(ConvTranspose2d(hidden, deepest, 7)))
        self.unpool = MaxUnpool2d(2)
        self.decoder = nn.ModuleList(
            nn.Sequential(*(layer for pair in stage for layer in _normalized(ConvTranspose2d(*pair, 3, padding=1))))
            for stage in mirrored_stages(width, width)
        )
        self.score = nn.Conv2d(width, num_classes, 1)
        initialize(self)
        self.aux_classifier = FCNHead(deepest, num_classes) if aux_loss else None

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        check_input(input, self.in_channels, _SMALLEST)
        x, switches = pooled_with_switches(self.encoder, input)
        deepest = x
        x = self.fc6_deconv(self.fc7(self.fc6(x)))
        for stage in self.decoder:
            indices, size = switches.pop()
            x = stage(self.unpool(x, indices, output_size=size))
        return add_aux(OrderedDict(out=self.score(x)), self.aux_classifier, deepest, input.shape[2:])


@register_model
def deconvnet(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    width: int = 64,
) -> DeconvNet:
    """DeconvNet: VGG16 with ``fc6`` and ``fc7`` as convolutions, a 7x7 deconvolution back, and per stage an unpooling with the
    encoder's switches and 3x3 deconvolutions.

    Every layer but the last has batch normalisation and ReLU, in place of VGG16's dropout, as in the paper. The switches are
    uint8 window offsets, an eighth of the memory of int64 positions. 251,805,653 parameters with the defaults.

    Args:
        weights: path of a state dict of this model to load, strictly.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: channels of the logits.
        aux_loss: True adds an FCN head on the encoder's last map, whose logits are ``aux``. None (default): where the
            weights have one.
        weights_backbone: a member of :class:`VGG16_BN_Weights`, or the path of a state dict of torchvision's ``vgg16_bn``
            (three input channels), for the encoder; not read where ``weights`` is given.
        in_channels: channels of the input.
        width: channels of the first stage; ``fc6`` and ``fc7`` have 64 times as many. Default: 64, the paper's.

    Returns:
        DeconvNet: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``. H and W are at least 224, where
        ``fc6`` sees a 7x7 map and gives one vector, and need not be multiples of 32: each unpooling restores the size that
        its pooling had. In training the normalisation after ``fc6`` needs more than one value per channel: two images of
        224x224, or a larger one.

    Raises:
        ValueError: for weights of another model; from ``forward``, for another rank, number of channels, or a smaller input.
    """
    state, has_aux = read_semantic("deconvnet", weights, progress, num_classes, aux_loss)
    model = DeconvNet(in_channels, num_classes, width, has_aux)
    if state is not None:
        load_state(model, state, weights)
    else:
        load_features(model.encoder, weights_backbone, progress, batch_norm=True)
    return model
