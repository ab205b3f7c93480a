"""Segmentation models: keyword-only builders, by function or by name.

A semantic model returns an ``OrderedDict`` of logits at the input's size, as torchvision's do: ``out``, and ``aux`` where
the model has an auxiliary head that is switched on (:func:`unet` and :func:`segnet` have none). Inputs are normalised
outside the model.
"""

from segkernels.models._registry import get_model, list_models
from segkernels.models.segnet import SegNet, segnet
from segkernels.models.unet import UNet, unet

__all__ = ["SegNet", "UNet", "get_model", "list_models", "segnet", "unet"]
