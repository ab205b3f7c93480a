"""DeepLab v2: a sum of atrous convolutions on a dilated ResNet, at several scales of the image (Chen et al. 2016)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from segkernels.models._registry import check_input, register_model
from segkernels.models._semantic import FCNHead, SemanticModel, read_semantic
from segkernels.models._weights import Weights, load_backbone, load_state
from segkernels.models.resnet import ResNetEncoder
from segkernels.nn import ASPP
from segkernels.ops import upsample_bilinear2d

#: Rates of the pyramid at output stride 8 ("ASPP-L").
RATES = (6, 12, 18, 24)


class DeepLabV2(SemanticModel):
    """See :func:`deeplabv2_resnet101`; ``scales`` are those of the image, the largest first."""

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        aux_classifier: nn.Module | None = None,
        scales: Sequence[float] = (1.0,),
        in_channels: int = 3,
    ) -> None:
        super().__init__(backbone, classifier, aux_classifier, in_channels=in_channels)
        if not scales or scales[0] != 1 or not all(0 < scale < 1 for scale in scales[1:]):
            raise ValueError(f"scales: expected 1 and then scales below it, got {tuple(scales)}")
        self.scales = tuple(scales)

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        if len(self.scales) == 1:
            return super().forward(input)
        check_input(input, self.in_channels, self.smallest)
        size = input.shape[2:]
        logits, aux = [], None
        for scale in self.scales:
            maps = self.backbone(input if scale == 1 else upsample_bilinear2d(input, _scaled(size, scale)))
            logits.append(self.classifier(maps[self.out]))
            if scale == 1 and self.aux_classifier is not None:
                aux = upsample_bilinear2d(self.aux_classifier(maps[self.aux]), size)
        fused = logits[0]
        for coarse in logits[1:]:
            fused = torch.maximum(fused, upsample_bilinear2d(coarse, fused.shape[2:]))
        result = OrderedDict(out=upsample_bilinear2d(fused, size))
        if aux is not None:
            result["aux"] = aux
        if self.training:
            result.update((f"out_{scale}", upsample_bilinear2d(x, size)) for scale, x in zip(self.scales, logits))
        return result


def _scaled(size: torch.Size, scale: float) -> list[int]:
    return [max(1, int(length * scale)) for length in size]


@register_model
def deeplabv2_resnet101(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    multi_scale: bool = False,
) -> DeepLabV2:
    """DeepLab v2 on ResNet-101 at output stride 8: 3x3 convolutions of rates 6, 12, 18 and 24 to the logits, summed.

    The ResNet is torchvision's, with strides in its 3x3 convolutions; the authors' has them in the 1x1 before. The conditional
    random field that the paper puts behind the network is not part of it. 44,048,532 parameters with the defaults.

    Args:
        weights: path of a state dict of this model to load, strictly.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: channels of the logits.
        aux_loss: True adds a head on the third stage, whose logits are ``aux``. None (default): where the weights have one.
        weights_backbone: a member of :class:`ResNet101_Weights`, or the path of a state dict of torchvision's ``resnet101``;
            not read where ``weights`` is given.
        in_channels: channels of the input.
        multi_scale: True runs the same network on the image at scales 1, 0.75 and 0.5 and takes the maximum of the three
            logits at each position and class. Default: False.

    Returns:
        DeepLabV2: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])``, and ``aux`` likewise. With
        ``multi_scale`` ``out`` is the fused one, and in training ``out_1.0``, ``out_0.75`` and ``out_0.5`` follow, each
        scale's own logits at the size of the input: the paper's loss is the sum over all four.

    Raises:
        ValueError: for weights of another model; from ``forward``, for another rank or number of channels.
    """
    state, has_aux = read_semantic("deeplabv2_resnet101", weights, progress, num_classes, aux_loss)
    backbone = ResNetEncoder("resnet101", in_channels, output_stride=8)
    channels = backbone.channels
    aux = FCNHead(channels["layer3"], num_classes) if has_aux else None
    head = ASPP(channels["layer4"], RATES, num_classes, variant="v2")
    scales = (1.0, 0.75, 0.5) if multi_scale else (1.0,)
    model = DeepLabV2(backbone, head, aux, scales, in_channels)
    if state is not None:
        load_state(model, state, weights)
    else:
        load_backbone(backbone, weights_backbone, progress, name="resnet101")
    return model
