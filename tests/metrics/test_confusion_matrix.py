from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segkernels.metrics import ConfusionMatrix

ROOT = Path(__file__).parents[2]

# Two processes see different batches, one of them none of class 2, and must read the same figures.
WORKER = """
import sys, torch, torch.distributed as dist
from segkernels.metrics import ConfusionMatrix
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
batches = [(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])), (torch.tensor([2, 2, 1, 0]), torch.tensor([2, 0, 1, 0]))]
metric = ConfusionMatrix(3)
metric.update(*batches[rank])
metric.all_reduce()
single = ConfusionMatrix(3)
for batch in batches:
    single.update(*batch)
assert torch.equal(metric.matrix, single.matrix), metric.matrix
assert metric.compute()["mean_iou"] == single.mean_iou()
dist.destroy_process_group()
"""


def metric_of(matrix: list[list[int]], **kwargs) -> ConfusionMatrix:
    """A metric that has seen these pairs, one by one through update()."""
    metric = ConfusionMatrix(len(matrix), **kwargs)
    pairs = [(t, p) for t, row in enumerate(matrix) for p, n in enumerate(row) for _ in range(n)]
    target, prediction = torch.tensor(pairs).T
    metric.update(prediction, target)
    assert metric.matrix.tolist() == matrix
    return metric


def close(actual: torch.Tensor, expected: float | list[float]) -> bool:
    return torch.allclose(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12, equal_nan=True)


class TestFigures:
    def test_lecture_example(self):
        """The 4x4 image of the lecture, class A against the background."""
        metric = metric_of([[1, 1], [1, 13]])
        assert close(metric.iou(), [1 / 3, 13 / 15])
        assert close(metric.mean_iou(), 0.6)
        assert close(metric.dice(), [0.5, 13 / 14])
        assert close(metric.pixel_accuracy(), 14 / 16)
        assert close(metric.precision(), [0.5, 13 / 14])
        assert close(metric.recall(), [0.5, 13 / 14])
        assert close(metric.f1(), [0.5, 13 / 14])
        assert round(metric.f1("macro").item(), 4) == 0.7143
        # The slide prints 87.45 %: a misprint of 87.5, since micro-F1 is the accuracy, 14/16.
        assert close(metric.f1("micro"), 0.875)

    def test_against_written_out_formulas(self):
        matrix = [[50, 3, 2], [4, 20, 6], [1, 7, 30]]
        metric = metric_of(matrix)
        hits = [matrix[c][c] for c in range(3)]
        targets = [sum(row) for row in matrix]
        predictions = [sum(row[c] for row in matrix) for c in range(3)]
        total = sum(targets)
        iou = [h / (t + p - h) for h, t, p in zip(hits, targets, predictions)]
        f1 = [2 * h / (t + p) for h, t, p in zip(hits, targets, predictions)]
        precision = [h / p for h, p in zip(hits, predictions)]
        recall = [h / t for h, t in zip(hits, targets)]
        expected = {
            "iou": iou,
            "dice": f1,
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "mean_iou": sum(iou) / 3,
            "mean_dice": sum(f1) / 3,
            "macro_f1": sum(f1) / 3,
            "macro_precision": sum(precision) / 3,
            "macro_recall": sum(recall) / 3,
            "mean_accuracy": sum(recall) / 3,
            "pixel_accuracy": sum(hits) / total,
            "micro_f1": sum(hits) / total,
            "frequency_weighted_iou": sum(t / total * i for t, i in zip(targets, iou)),
        }
        computed = metric.compute()
        assert computed.pop("matrix").tolist() == matrix
        assert computed.keys() == expected.keys()
        for name, value in expected.items():
            assert close(computed[name], value), name
        for name in ("iou", "mean_iou", "dice", "mean_dice", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
            assert close(getattr(metric, name)(), expected[name]), name
        for name in ("precision", "recall", "f1"):
            figure = getattr(metric, name)
            assert close(figure(), expected[name])
            assert close(figure("macro"), expected[f"macro_{name}"])
            assert close(figure("micro"), expected["pixel_accuracy"])

    def test_dice_and_iou_are_monotone_in_each_other(self):
        metric = metric_of([[5, 3, 1], [2, 8, 0], [1, 1, 9]])
        assert torch.allclose(metric.iou(), metric.dice() / (2 - metric.dice()))

    @pytest.mark.parametrize(
        ("absent", "value", "mean"),
        [
            ("nan", math.nan, 2 / 3),  # torchvision's script, mmsegmentation, detectron2; torchmetrics with zero_division=nan
            (0.0, 0.0, 2 / 3),  # torchmetrics' JaccardIndex: 0 per class, left out of the macro mean
            (1.0, 1.0, 7 / 9),  # smp: 1, and counted
        ],
    )
    def test_absent_class(self, absent, value, mean):
        metric = ConfusionMatrix(3, absent=absent)
        metric.update(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 0]))
        assert close(metric.iou(), [2 / 3, 2 / 3, value])
        assert close(metric.mean_iou(), mean)
        assert close(metric.dice(), [0.8, 0.8, value])
        assert close(metric.precision(), [1.0, 2 / 3, value])
        assert close(metric.recall(), [2 / 3, 1.0, value])
        assert close(metric.pixel_accuracy(), 0.8)
        assert close(metric.mean_accuracy(), (2 / 3 + 1) / 2)

    def test_predicted_only_and_never_predicted(self):
        """Class 1 is predicted but not there, class 2 is there but never predicted."""
        metric = metric_of([[3, 1, 0], [0, 0, 0], [2, 0, 0]])
        assert close(metric.iou(), [3 / 6, 0.0, 0.0])
        assert close(metric.precision(), [3 / 5, 0.0, 0.0])
        assert close(metric.recall(), [3 / 4, 0.0, 0.0])
        assert close(metric.mean_accuracy(), (3 / 4 + 0) / 2)

    @pytest.mark.parametrize(("absent", "value"), [("nan", math.nan), (0.0, 0.0), (1.0, 1.0)])
    def test_nothing_seen(self, absent, value):
        computed = ConfusionMatrix(4, absent=absent).compute()
        for name, figure in computed.items():
            if name != "matrix":
                assert close(figure, [value] * figure.numel() if figure.dim() else value), name

    def test_ignored_class_stays_out_of_means(self):
        """As torchmetrics' JaccardIndex with an ignore_index among the classes."""
        metric = ConfusionMatrix(3, ignore_index=0)
        metric.update(torch.tensor([0, 1, 0, 2, 2]), torch.tensor([0, 0, 1, 2, 1]))
        assert metric.matrix.tolist() == [[0, 0, 0], [1, 0, 1], [0, 0, 1]]
        assert close(metric.mean_iou(), (0 + 1 / 2) / 2)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="num_classes"):
            ConfusionMatrix(0)
        with pytest.raises(ValueError, match="absent"):
            ConfusionMatrix(2, absent=0.5)
        with pytest.raises(ValueError, match="average"):
            ConfusionMatrix(2).f1("weighted")


class TestAccumulation:
    def test_batches_of_labels_and_logits(self):
        torch.manual_seed(0)
        target = torch.randint(0, 4, (2, 12, 16))
        target[0, 0] = 255
        logits = torch.randn(2, 4, 12, 16)
        small = torch.randn(2, 4, 3, 4)
        metric = ConfusionMatrix(4, ignore_index=255)
        metric.update(logits, target)
        metric.update(logits.argmax(1).byte(), target)
        metric.update(small, target)
        kept = target != 255
        full = torch.nn.functional.interpolate(small, size=(12, 16), mode="bilinear").argmax(1)
        expected = 2 * torch.bincount(4 * target[kept] + logits.argmax(1)[kept], minlength=16)
        expected += torch.bincount(4 * target[kept] + full[kept], minlength=16)
        assert torch.equal(metric.matrix, expected.view(4, 4))

    def test_call_updates_and_returns_the_batch(self):
        metric = ConfusionMatrix(2)
        good, bad = torch.tensor([0, 1]), torch.tensor([1, 0])
        assert metric(good, good)["mean_iou"] == 1
        assert metric(bad, good)["mean_iou"] == 0
        assert metric.matrix.tolist() == [[1, 1], [1, 1]]
        assert metric.compute()["pixel_accuracy"] == 0.5

    def test_computed_matrix_is_a_snapshot(self):
        metric = metric_of([[2, 0], [1, 1]])
        matrix = metric.compute()["matrix"]
        metric.reset()
        assert matrix.sum() == 4
        assert metric.matrix.sum() == 0

    def test_bad_label_leaves_the_counts(self):
        metric = metric_of([[2, 0], [1, 1]])
        with pytest.raises(ValueError, match="target: expected labels"):
            metric.update(torch.tensor([0, 1]), torch.tensor([0, 2]))
        assert metric.matrix.sum() == 4
        assert metric.invalid.sum() == 0

    def test_labels_left_out_raise_when_figures_are_read(self):
        """What a GPU does: update() cannot raise without waiting for the device."""
        metric = metric_of([[2, 0], [1, 1]])
        metric.invalid += torch.tensor([0, 3])
        for read in (metric.compute, metric.iou, metric.mean_accuracy, metric.f1):
            with pytest.raises(ValueError, match="3 targets outside"):
                read()
        metric.reset()
        metric.compute()

    def test_state_dict_and_copies(self):
        metric = metric_of([[2, 0], [1, 1]])
        loaded = ConfusionMatrix(2)
        loaded.load_state_dict(metric.state_dict(), strict=True)
        assert torch.equal(loaded.matrix, metric.matrix)
        twin = copy.deepcopy(metric).half()
        assert twin.matrix.dtype == torch.int64
        assert list(metric.parameters()) == []
        twin.reset()
        assert metric.matrix.sum() == 4

    def test_wrong_device(self):
        with pytest.raises(ValueError, match="metric's device"):
            ConfusionMatrix(2).to("meta").update(torch.tensor([0]), torch.tensor([0]))

    def test_update_under_compile(self):
        metric = ConfusionMatrix(3)
        update = torch.compile(metric.update, fullgraph=True, backend="aot_eager")
        labels = torch.randint(0, 3, (2, 8, 8))
        update(torch.randn(2, 3, 8, 8), labels)
        assert metric.matrix.sum() == 128

    def test_all_reduce_without_processes_does_nothing(self):
        metric = metric_of([[2, 0], [1, 1]])
        metric.all_reduce()
        assert metric.matrix.sum() == 4

    def test_all_reduce_over_two_processes(self, tmp_path):
        command = [sys.executable, "-c", WORKER]
        workers = [
            subprocess.Popen([*command, str(rank), str(tmp_path / "store")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors

    @pytest.mark.gpu
    def test_no_host_sync_on_a_gpu(self):
        metric = ConfusionMatrix(3).to("cuda")
        target = torch.randint(0, 4, (2, 8, 8), device="cuda")
        logits = torch.randn(2, 3, 8, 8, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            metric.update(logits, target)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        with pytest.raises(ValueError, match="targets outside"):
            metric.compute()
