"""COCO's average precision of detections, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch

_IOU_TYPES = ("bbox", "segm")
_KEYS = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large",
         "mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")  # fmt: skip


class CocoAP:
    """Average precision and recall over IoU 0.50 to 0.95, as COCO defines them (pycocotools, the extra ``coco``).

    Takes the dictionaries that torchvision's detectors return and train on, and gives the keys of torchmetrics'
    ``MeanAveragePrecision``. ``metric.update(predictions, targets)``, ``metric.compute()``, ``metric.reset()``.

    The thresholds are COCO's, in float64. torchmetrics rounds its own to float32 (recall 0.6 to 0.60000002), and so is off by
    up to 0.01 where a recall or an overlap lies exactly on one; given ``rec_thresholds=numpy.linspace(0, 1, 101).tolist()``
    and ``iou_thresholds=numpy.linspace(0.5, 0.95, 10).tolist()`` it agrees.

    Args:
        iou_type: ``'bbox'`` or ``'segm'``.

    Raises:
        ValueError: for another ``iou_type``.
        ImportError: when pycocotools is not installed.
    """

    def __init__(self, iou_type: str = "bbox") -> None:
        if iou_type not in _IOU_TYPES:
            raise ValueError(f"iou_type: expected one of {', '.join(_IOU_TYPES)}, got {iou_type!r}")
        try:
            import pycocotools  # noqa: F401
        except ImportError as error:
            raise ImportError("CocoAP needs pycocotools: pip install segkernels[coco]") from error
        self.iou_type = iou_type
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._images = 0
        self._targets: list[dict[str, Any]] = []
        self._predictions: list[dict[str, Any]] = []

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        """Adds the detections of some images.

        Args:
            predictions: for each image ``boxes`` [K, 4] as corners, ``scores`` [K], ``labels`` [K] and, for ``'segm'``,
                ``masks`` [K, H, W] or [K, 1, H, W], bool or probabilities of which 0.5 and more are set, or the list of
                dictionaries that :func:`segkernels.ops.paste_masks_rle` returns.
            targets: for each image ``boxes``, ``labels``, for ``'segm'`` ``masks``; ``iscrowd`` [K] and ``area`` [K] where
                they are known.

        Raises:
            ValueError: for lists of different length, a missing key, or entries of different length.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"predictions and targets: expected one of each an image, got {len(predictions)}, {len(targets)}")
        found = [self._annotations(image, "predictions", ("labels", "scores")) for image in predictions]
        true = [self._annotations(image, "targets", ("labels",)) for image in targets]
        for detections, references in zip(found, true):
            self._predictions += [entry | {"image_id": self._images} for entry in detections]
            self._targets += [entry | {"image_id": self._images} for entry in references]
            self._images += 1

    def compute(self) -> dict[str, torch.Tensor]:
        """The twelve figures of COCO's evaluation.

        Returns:
            dict: float32 scalars ``map``, ``map_50``, ``map_75``, ``map_small``, ``map_medium``, ``map_large``, ``mar_1``,
            ``mar_10``, ``mar_100``, ``mar_small``, ``mar_medium``, ``mar_large``; -1 where no target is of that kind.
        """
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        if not self._targets:
            return {key: torch.tensor(-1.0) for key in _KEYS}
        categories = {entry["category_id"] for entry in self._targets + self._predictions}
        # The sizes of images matter for polygons alone.
        images = [{"id": i, "height": 0, "width": 0} for i in range(self._images)]
        with contextlib.redirect_stdout(io.StringIO()):
            truth, detected = COCO(), COCO()
            for dataset, entries in ((truth, self._targets), (detected, self._predictions)):
                dataset.dataset = {
                    "images": images,
                    "categories": [{"id": category} for category in sorted(categories)],
                    # pycocotools takes the id 0 for no match.
                    "annotations": [dict(entry, id=i + 1) for i, entry in enumerate(entries)],
                }
                dataset.createIndex()
            evaluation = COCOeval(truth, detected, self.iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {key: torch.tensor(float(value)) for key, value in zip(_KEYS, evaluation.stats)}

    def _annotations(self, image: dict[str, Any], name: str, needed: tuple[str, ...]) -> list[dict[str, Any]]:
        shape = "masks" if self.iou_type == "segm" else "boxes"
        for key in (shape, *needed):
            if key not in image:
                raise ValueError(f"{name}: expected the keys {', '.join((shape, *needed))}, got {', '.join(image)}")
        labels = image["labels"].tolist()
        entries: list[dict[str, Any]] = [{"category_id": label, "iscrowd": 0} for label in labels]
        columns: dict[str, list[Any]] = {}
        if self.iou_type == "segm":
            import pycocotools.mask

            columns["segmentation"] = _encoded(image["masks"])
            columns["area"] = [float(pycocotools.mask.area(rle)) for rle in columns["segmentation"]]
        if "boxes" in image:
            low, high = image["boxes"][:, :2], image["boxes"][:, 2:]
            columns["bbox"] = torch.cat([low, high - low], 1).tolist()
            columns.setdefault("area", [w * h for _, _, w, h in columns["bbox"]])
        if "scores" in needed:
            columns["score"] = image["scores"].tolist()
        for key in ("area", "iscrowd") if name == "targets" else ():
            if key in image:
                columns[key] = image[key].tolist()
        for key, values in columns.items():
            if len(values) != len(entries):
                raise ValueError(f"{name}: expected {len(entries)} entries as labels has, got {len(values)} of {key}")
            for entry, value in zip(entries, values):
                entry[key] = value
        return entries


def _encoded(masks: Any) -> list[dict[str, Any]]:
    """COCO's encoding of masks, which may be encoded already."""
    if not isinstance(masks, torch.Tensor):
        return [dict(rle) for rle in masks]
    import pycocotools.mask

    if masks.dim() == 4:
        masks = masks[:, 0]
    pixels = (masks >= 0.5 if masks.is_floating_point() else masks != 0).to("cpu", torch.uint8)
    return [pycocotools.mask.encode(mask.numpy().astype("uint8", order="F")) for mask in pixels]
