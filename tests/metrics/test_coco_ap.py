from __future__ import annotations

import numpy as np
import pytest
import torch

from segkernels.metrics import CocoAP
from segkernels.ops import paste_masks, paste_masks_rle


@pytest.fixture(autouse=True)
def _needs_pycocotools():
    pytest.importorskip("pycocotools")


def images(count: int = 4) -> tuple[list[dict], list[dict]]:
    """Targets of several sizes, and predictions that find most of them, a little beside."""
    predictions, targets = [], []
    for _ in range(count):
        corner = torch.rand(8, 2) * 150
        boxes = torch.cat([corner, corner + torch.rand(8, 2) * torch.tensor([20.0, 40, 120] * 3)[:8, None] + 8], 1)
        labels = torch.randint(1, 4, (8,))
        near = boxes + torch.randn(8, 4) * 2
        places = (200, 300)
        targets.append({"boxes": boxes, "labels": labels, "masks": paste_masks(torch.ones(8, 28, 28), boxes, places)})
        predictions.append(
            {
                "boxes": near,
                "labels": torch.where(torch.rand(8) < 0.8, labels, 1),
                "scores": torch.rand(8),
                "masks": paste_masks(torch.ones(8, 28, 28), near, places),
            }
        )
    return predictions, targets


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_agrees_with_torchmetrics(iou_type):
    detection = pytest.importorskip("torchmetrics.detection")
    predictions, targets = images()
    targets[0]["iscrowd"] = torch.tensor([1] + [0] * 7)
    # Its own thresholds are rounded to float32.
    thresholds = {"rec_thresholds": np.linspace(0, 1, 101).tolist(), "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist()}
    peer = detection.MeanAveragePrecision(iou_type=iou_type, **thresholds)
    peer.update(predictions, targets)
    metric = CocoAP(iou_type)
    metric.update(predictions[:1], targets[:1])
    metric.update(predictions[1:], targets[1:])
    found, expected = metric.compute(), peer.compute()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
    assert 0.1 < found["map"] < 1


def test_a_recall_on_a_threshold_counts():
    """6 of 10 found, all right: precision is 1 at the recall 0.6, too, the 61st of the 101 thresholds."""
    boxes = torch.arange(10.0)[:, None] * 20 + torch.tensor([0.0, 0, 10, 10])
    labels = torch.ones(10, dtype=torch.int64)
    metric = CocoAP()
    metric.update(
        [{"boxes": boxes[:6], "scores": torch.linspace(1, 0.5, 6), "labels": labels[:6]}], [{"boxes": boxes, "labels": labels}]
    )
    found = metric.compute()
    torch.testing.assert_close(found["map"], torch.tensor(61 / 101))
    torch.testing.assert_close(found["mar_100"], torch.tensor(0.6))


def test_takes_run_lengths():
    predictions, targets = images(1)
    metric, encoded = CocoAP("segm"), CocoAP("segm")
    metric.update(predictions, targets)
    rle = paste_masks_rle(torch.ones(8, 28, 28), predictions[0]["boxes"], (200, 300))
    encoded.update([predictions[0] | {"masks": rle}], targets)
    assert metric.compute() == encoded.compute()


def test_perfect_nothing_and_no_targets():
    _, targets = images(1)
    metric = CocoAP()
    assert metric.compute()["map"] == -1
    metric.update([targets[0] | {"scores": torch.ones(8)}], targets)
    assert metric.compute()["map"] == 1
    metric.reset()
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    metric.update([nothing], targets)
    assert metric.compute()["map"] == 0
    assert metric.compute()["mar_100"] == 0


def test_bad_input():
    predictions, targets = images(1)
    with pytest.raises(ValueError, match="iou_type: expected one of bbox, segm"):
        CocoAP("keypoints")
    metric = CocoAP()
    with pytest.raises(ValueError, match="one of each an image"):
        metric.update(predictions, [])
    with pytest.raises(ValueError, match="predictions: expected the keys boxes, labels, scores"):
        metric.update(targets, targets)
    with pytest.raises(ValueError, match="predictions: expected 8 entries"):
        metric.update([predictions[0] | {"scores": torch.ones(3)}], targets)
