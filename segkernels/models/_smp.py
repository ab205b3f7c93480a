"""State dicts of segmentation_models_pytorch (SMP) for the DeepLab models: their keys in ours.

======================================  ===========================================
SMP                                     here
======================================  ===========================================
``encoder.``                            ``backbone.``
``segmentation_head.0.``                ``classifier.4.`` (v3), ``classifier.logits.`` (v3+)
``decoder.aspp.`` (v3)                  ``classifier.0.``
``decoder.conv.``, ``decoder.bn.``      ``classifier.1.``, ``classifier.2.``
``decoder.aspp.0.`` (v3+)               ``classifier.aspp.``
``decoder.aspp.1.``, ``.2.``            ``classifier.refine.0.``, ``.1.``
``decoder.block1.``                     ``classifier.project.``
``decoder.block2.``                     ``classifier.fuse.``
``.0.``, ``.1.`` of a SeparableConv2d   ``.depthwise.``, ``.pointwise.``
======================================  ===========================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

_HALVES = ("depthwise", "pointwise")
_V3 = {
    "encoder.": "backbone.",
    "decoder.aspp.": "classifier.0.",
    "decoder.conv.": "classifier.1.",
    "decoder.bn.": "classifier.2.",
    "segmentation_head.0.": "classifier.4.",
}
_V3PLUS = {
    "encoder.": "backbone.",
    "decoder.aspp.0.": "classifier.aspp.",
    "decoder.aspp.1.": "classifier.refine.0.",
    "decoder.aspp.2.": "classifier.refine.1.",
    "decoder.block1.": "classifier.project.",
    "decoder.block2.": "classifier.fuse.",
    "segmentation_head.0.": "classifier.logits.",
}
# The separable convolutions of v3+: three branches of the pyramid, the one after it, and the decoder's.
_SEPARABLE = re.compile(r"^(classifier\.(?:aspp\.convs\.[123]\.0|refine\.0|fuse\.0)\.)([01])\.")


def is_smp(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is that of an SMP model."""
    return any(key.startswith("segmentation_head.") for key in state)


def from_smp(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """SMP's state dict of a DeepLabV3 or DeepLabV3Plus with our keys; keys that are in neither stay as they are."""
    table = _V3PLUS if any(key.startswith("decoder.block1.") for key in state) else _V3
    return {_key(key, table): value for key, value in state.items()}


def _key(key: str, table: Mapping[str, str]) -> str:
    for theirs, ours in table.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
            break
    return _SEPARABLE.sub(lambda match: f"{match[1]}{_HALVES[int(match[2])]}.", key)
