"""The first fully convolutional networks: VGG16 with its classifier as convolutions (Long, Shelhamer, Darrell 2015)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from segkernels.models._registry import check_input, register_model
from segkernels.models._semantic import FCNHead, add_aux, read_semantic
from segkernels.models._weights import StateDict, Weights, check_member, load_state, load_weights
from segkernels.models.vgg import VGG16Encoder, convolutionalize, initialize, vgg16_name
from segkernels.nn import BilinearConvTranspose2d, MaxPool2d

# Strides of the maps that are scored: the coarsest one, and those that the finer networks add.
_STRIDES = {"pool5": 32, "pool4": 16, "pool3": 8}
# The padding of the authors, and the pixel of a larger map on which the map or image that it meets begins.
_PAPER_PADDING = 100
_PAPER_CROPS = {"pool4": 5, "pool3": 9}
_PAPER_OUT_CROPS = {32: 19, 16: 27, 8: 31}


class FCNVGG16(nn.Module):
    """See :func:`fcn32s_vgg16`, :func:`fcn16s_vgg16` and :func:`fcn8s_vgg16`; ``stride`` is 32, 16 or 8."""

    def __init__(
        self,
        stride: int,
        num_classes: int = 21,
        in_channels: int = 3,
        width: int = 64,
        batch_norm: bool = False,
        padding: str = "same",
        aux_loss: bool = False,
    ) -> None:
        super().__init__()
        if padding not in ("same", "paper"):
            raise ValueError(f"padding: expected 'same' or 'paper', got {padding!r}")
        paper = padding == "paper"
        self.in_channels = in_channels
        maps = [name for name in _STRIDES if _STRIDES[name] >= stride]
        self.backbone = VGG16Encoder(
            in_channels,
            batch_norm,
            width,
            {*maps, "pool4"},  # the auxiliary head's, of the coarsest network too
            # Caffe's poolings keep a last window that is not full.
            pool=lambda stage: MaxPool2d(2, ceil_mode=True),
            padding=_PAPER_PADDING if paper else 1,
        )
        self.fc6 = nn.Conv2d(8 * width, 64 * width, 7, padding=0 if paper else 3)
        self.fc7 = nn.Conv2d(64 * width, 64 * width, 1)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        initialize(self)
        channels = self.backbone.channels | {"pool5": 64 * width}
        self.score = nn.ModuleDict({name: nn.Conv2d(channels[name], num_classes, 1) for name in maps})
        for score in self.score.values():
            nn.init.zeros_(score.weight)  # type: ignore[arg-type]
            nn.init.zeros_(score.bias)  # type: ignore[arg-type]
        # To each skip's resolution and, the last one, to the input's.
        ups = {name: BilinearConvTranspose2d(num_classes, 2) for name in maps[1:]}
        ups["out"] = BilinearConvTranspose2d(num_classes, stride, learnable=False)
        self.crops = dict.fromkeys(ups, 0)
        if paper:
            self.crops = {**_PAPER_CROPS, "out": _PAPER_OUT_CROPS[stride]}
            for up in ups.values():
                up.padding = (0, 0)
        self.up = nn.ModuleDict(ups)
        self.aux_classifier = FCNHead(channels["pool4"], num_classes) if aux_loss else None

    def forward(self, input: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        check_input(input, self.in_channels, 1)
        maps = self.backbone(input)
        x = self.dropout(self.relu(self.fc6(maps["pool5"])))
        x = self.dropout(self.relu(self.fc7(x)))
        x = self.score["pool5"](x)
        for name, up in self.up.items():
            x = up(x)
            if name != "out":
                # Rounding up has made one of the two a row or a column larger, or padding both.
                skip = _crop(maps[name], self.crops[name], x)
                x = _crop(x, 0, skip) + self.score[name](skip)
        result = OrderedDict(out=_crop(x, self.crops["out"], input))
        return add_aux(result, self.aux_classifier, maps["pool4"], input.shape[2:])


def _crop(map: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    return map[:, :, start : start + like.shape[2], start : start + like.shape[3]]


def _fcn_vgg16(
    stride: int,
    weights: Weights | None,
    progress: bool,
    num_classes: int,
    aux_loss: bool | None,
    weights_backbone: Weights | None,
    in_channels: int,
    width: int,
    batch_norm: bool,
    padding: str,
) -> FCNVGG16:
    state, has_aux = read_semantic(f"fcn{stride}s_vgg16", weights, progress, num_classes, aux_loss)
    check_member(weights_backbone, vgg16_name(batch_norm))
    model = FCNVGG16(stride, num_classes, in_channels, width, batch_norm, padding, has_aux)
    if state is not None:
        load_state(model, state, weights)
    elif weights_backbone is not None:
        trunk = nn.ModuleDict({"backbone": model.backbone, "fc6": model.fc6, "fc7": model.fc7})
        load_weights(trunk, weights_backbone, progress, _trunk_state)
    return model


def _trunk_state(classifier: StateDict) -> StateDict:
    return {key: value for key, value in convolutionalize(classifier).items() if not key.startswith("score.")}


@register_model
def fcn32s_vgg16(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    width: int = 64,
    batch_norm: bool = False,
    padding: str = "same",
) -> FCNVGG16:
    """FCN-32s: VGG16 whose linear layers are convolutions, 1x1 scores, and bilinear upsampling by 32.

    The scores start at zero, as in the paper, and the upsampling is a transposed convolution per channel that starts as
    bilinear interpolation (kernel 64, stride 32). The last one of each network stays that, learned ones are in FCN-16s and
    -8s; ``model.up["out"].requires_grad_()`` lets it learn, too. 134,432,597 parameters with the defaults.

    Args:
        weights: path of a state dict of this model to load, strictly.
        progress: show a progress bar while weights are downloaded; a path downloads nothing.
        num_classes: channels of the logits.
        aux_loss: True adds an FCN head on ``pool4``, whose logits are ``aux``. None (default): where the
            weights have one.
        weights_backbone: a member of :class:`VGG16_Weights`, or the path of a state dict of torchvision's ``vgg16``
            (``vgg16_bn`` with ``batch_norm``), classifier included, which :func:`~segkernels.models.convolutionalize` turns
            into ``fc6`` and ``fc7``; not read where ``weights`` is given.
        in_channels: channels of the input.
        width: channels of the first stage; ``fc6`` and ``fc7`` have 64 times as many.
        batch_norm: BatchNorm after each 3x3 convolution.
        padding: ``"same"`` (default): ``fc6`` pads its 7x7 window, so the scores of a 224x224 image are 7x7 and the central
            one is what the classifier says about the image. ``"paper"``: the authors' 100 zeros around the image and no
            padding in the classifier, for weights converted from theirs; maps are cropped at their offsets (``pool4`` at 5,
            ``pool3`` at 9, the results of strides 32, 16 and 8 at 19, 27 and 31).

    Returns:
        FCNVGG16: ``[N, in_channels, H, W] -> OrderedDict(out=[N, num_classes, H, W])`` for any H and W: poolings round up, and
        what is too large in the end is cropped.

    Raises:
        ValueError: for another ``padding`` and weights of another model, and from ``forward`` for another rank or number of
            channels.
    """
    return _fcn_vgg16(32, weights, progress, num_classes, aux_loss, weights_backbone, in_channels, width, batch_norm, padding)


@register_model
def fcn16s_vgg16(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    width: int = 64,
    batch_norm: bool = False,
    padding: str = "same",
) -> FCNVGG16:
    """:func:`fcn32s_vgg16` with ``pool4``'s scores added at stride 16, after a learned upsampling by 2."""
    return _fcn_vgg16(16, weights, progress, num_classes, aux_loss, weights_backbone, in_channels, width, batch_norm, padding)


@register_model
def fcn8s_vgg16(
    *,
    weights: Weights | None = None,
    progress: bool = True,
    num_classes: int = 21,
    aux_loss: bool | None = None,
    weights_backbone: Weights | None = None,
    in_channels: int = 3,
    width: int = 64,
    batch_norm: bool = False,
    padding: str = "same",
) -> FCNVGG16:
    """:func:`fcn16s_vgg16` with ``pool3``'s scores added at stride 8, too."""
    return _fcn_vgg16(8, weights, progress, num_classes, aux_loss, weights_backbone, in_channels, width, batch_norm, padding)
