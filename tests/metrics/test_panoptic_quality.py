from __future__ import annotations

import copy

import pytest
import torch

from segkernels.metrics import PanopticQuality


def blocks(seed: int, categories: int, instances: int, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.stack(
        [torch.randint(0, n, (3, size, size), generator=generator) for n in (categories, instances)], -1
    )  # fmt: skip
    return coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)


def image(*rows: list[tuple[int, int]]) -> torch.Tensor:
    return torch.tensor(rows)[None]


class TestPanopticQuality:
    def test_agrees_with_torchmetrics(self):
        detection = pytest.importorskip("torchmetrics.detection")
        # Category 4 of the targets is void.
        target = blocks(0, 5, 2)
        prediction = torch.where(torch.rand(3, 64, 64, 1) < 0.15, blocks(1, 4, 2), target)
        prediction[..., 0].clamp_(max=3)
        peer = detection.PanopticQuality({0, 3}, {1, 2}, return_sq_and_rq=True, return_per_class=True)
        peer.update(prediction, target)
        metric = PanopticQuality([0, 3], [1, 2])
        metric.update(prediction[:1], target[:1])
        metric.update(prediction[1:], target[1:])
        figures = metric.compute()
        # It divides in float32.
        order = [peer.cat_id_to_continuous_id[c] for c in figures["per_class"]]
        for row, found in zip(peer.compute()[order].tolist(), figures["per_class"].values()):
            assert [found["pq"], found["sq"], found["rq"]] == pytest.approx(row, abs=1e-6)
        averaged = detection.PanopticQuality({0, 3}, {1, 2}, return_sq_and_rq=True)
        averaged.update(prediction, target)
        assert [figures[name].item() for name in ("pq", "sq", "rq")] == pytest.approx(averaged.compute().tolist(), abs=1e-6)
        assert 0 < figures["pq"] < 1

    def test_written_out(self):
        """One thing matched at 3/4, one missed, one invented; stuff exact."""
        target = image([(1, 0)] * 4, [(1, 1)] * 4, [(2, 5)] * 4)
        prediction = image([(1, 7)] * 3 + [(2, 0)], [(1, 8)] * 2 + [(1, 9)] * 2, [(2, 6)] * 4)
        figures = PanopticQuality([1], [2])(prediction, target)
        assert figures["per_class"][1] == pytest.approx({"pq": 0.3, "sq": 0.75, "rq": 0.4, "tp": 1, "fp": 2, "fn": 1})
        assert figures["per_class"][2] == pytest.approx({"pq": 0.8, "sq": 0.8, "rq": 1.0, "tp": 1, "fp": 0, "fn": 0})
        assert figures["pq"] == pytest.approx(0.55)

    def test_void_and_crowd(self):
        """A prediction mostly on void or on a crowd of its category is forgiven, on another category's crowd it is not."""
        void, crowd = [(0, 0)] * 4, [(1, 3)] * 4
        prediction = image([(1, 1)] * 4, [(1, 2)] * 4, [(2, 4)] * 4)
        target = image(void, crowd, crowd)
        mask = torch.tensor([[[False] * 4, [True] * 4, [True] * 4]])
        metric = PanopticQuality([1, 2], [])
        figures = metric(prediction, target, mask)
        assert [figures["per_class"][c]["fp"] for c in (1, 2)] == [0, 1]
        assert [figures["per_class"][c]["fn"] for c in (1, 2)] == [0, 0]
        assert PanopticQuality([1, 2], [])(prediction, target)["per_class"][1]["fn"] == 1

    def test_states(self):
        metric = PanopticQuality([1], [2])
        assert metric.compute()["pq"].isnan()
        labels = image([(1, 0), (2, 0)])
        metric.update(labels, labels)
        other = PanopticQuality([1], [2])
        other.load_state_dict(copy.deepcopy(metric.state_dict()))
        assert other.compute()["pq"] == 1
        metric.reset()
        assert metric.compute()["pq"].isnan()
        metric.update(torch.zeros(2, 0, 0, 2, dtype=torch.int64), torch.zeros(2, 0, 0, 2, dtype=torch.int64))
        metric.all_reduce()
        assert metric.compute()["pq"].isnan()

    def test_bad_input(self):
        labels = image([(1, 0), (2, 0)])
        with pytest.raises(ValueError, match="things and stuff: expected different ids"):
            PanopticQuality([1], [1])
        with pytest.raises(ValueError, match="at least one"):
            PanopticQuality([], [])
        metric = PanopticQuality([1], [2])
        with pytest.raises(TypeError, match="prediction: expected an integer dtype"):
            metric.update(labels.float(), labels)
        with pytest.raises(ValueError, match=r"prediction: expected \[N, \*, 2\]"):
            metric.update(labels[..., :1], labels)
        with pytest.raises(ValueError, match="target: expected prediction's shape"):
            metric.update(labels, labels[:, :, :1])
        with pytest.raises(ValueError, match="crowd: expected shape"):
            metric.update(labels, labels, torch.zeros(1, dtype=torch.bool))
