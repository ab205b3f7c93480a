from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from op_test import OpTest, Sample

import segkernels
from segkernels import _load
from segkernels.ops import paste_masks, paste_masks_rle
from segkernels.ops._paste_arguments import parse
from segkernels.reference import paste_masks_rle as reference

STYLES = ("torchvision", "detectron2")


def runs(*arguments):
    return torch.ops.segkernels.paste_masks_rle(*parse(*arguments))


def oracle(masks, boxes, image_size, threshold=0.5, style="torchvision"):
    return reference.paste_masks_rle(*parse(masks, boxes, image_size, threshold, style))


def random_masks(count: int, device: str = "cpu", dtype=torch.float32):
    corner = torch.rand(count, 2, device=device) * 60 - 10
    boxes = torch.cat([corner, corner + torch.rand(count, 2, device=device) * 90], 1)
    return torch.rand(count, 9, 9, device=device).to(dtype), boxes.to(dtype)


class TestPasteMasksRle(OpTest):
    op = "paste_masks_rle"
    function = staticmethod(runs)
    oracle = staticmethod(oracle)
    differentiable = False

    def samples(self, device, dtype):
        return [
            Sample("masks", (*random_masks(6, device, dtype), (48, 64), 0.5, "torchvision")),
            Sample("detectron2", (*random_masks(6, device, dtype), (48, 64), 0.5, "detectron2")),
            Sample("wide", (*random_masks(4, device, dtype), (20, 200), 0.5, "torchvision")),
            Sample("none", (*random_masks(0, device, dtype), (48, 64), 0.5, "torchvision")),
        ]

    def test_compile(self):
        # How many runs there are is known only when the op has run.
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            super().test_compile()

    @pytest.mark.parametrize("helpers", [True, False])
    @pytest.mark.parametrize("style", STYLES)
    def test_equals_pycocotools(self, style, helpers, tier, monkeypatch):
        """Byte for byte, with the compiled strings and without, also where masks touch the image's borders."""
        peer = pytest.importorskip("pycocotools.mask")
        if not helpers:
            monkeypatch.setattr(_load, "helpers", None)
        masks, boxes = random_masks(30, tier[0])
        masks[:3] = 1
        boxes[0] = torch.tensor([-20.0, -20, 200, 200])  # all of the image
        boxes[1] = torch.tensor([10.0, -20, 30, 200])  # whole columns
        boxes[2] = torch.tensor([10.0, 20, 300, 300])  # the last pixel
        boxes[3] = torch.tensor([-90.0, 0, -50, 20])  # nothing
        with segkernels.backend(tier[1]):
            found = paste_masks_rle(masks, boxes, (60, 80), style=style)
            pixels = paste_masks(masks, boxes, (60, 80), style=style).cpu()
        for mine, mask in zip(found, pixels):
            theirs = peer.encode(mask.numpy().astype("uint8", order="F"))
            assert mine == theirs
            assert peer.area(mine) == mask.sum()

    def test_lengths(self):
        counts, offsets = runs(torch.ones(1, 4, 4), torch.tensor([[1.0, 1, 3, 3]]), (4, 5), 0.5, "detectron2")
        assert counts.tolist() == [5, 2, 2, 2, 9]
        assert offsets.tolist() == [0, 5]

    def test_empty_image(self):
        assert paste_masks_rle(torch.ones(1, 4, 4), torch.ones(1, 4), (0, 5)) == [{"size": [0, 5], "counts": b"0"}]

    def test_strings_refuse_other_arrays(self):
        if _load.helpers is None:
            pytest.skip("no compiled helpers")
        long = torch.ones(3, dtype=torch.int64)
        for bad in (long.int(), long[None], torch.ones(6, dtype=torch.int64)[::2]):
            with pytest.raises(ValueError, match="int64"):
                _load.helpers.rle_strings(bad.numpy(), long.numpy())
        for offsets in ([0, 4], [2, 1], [-1, 2]):
            with pytest.raises(ValueError, match="offsets"):
                _load.helpers.rle_strings(long.numpy(), torch.tensor(offsets).numpy())

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
    @pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what is freed")
    def test_memory(self):
        """A twentieth of the pasted masks at most: here 400 masks of 1000 x 1000."""
        if segkernels.tiers()["paste_masks_rle"]["cpu"]["chosen"] != "cpu":
            pytest.skip("needs the compiled kernel")
        place = torch.linspace(-1, 1, 28)
        masks = (1.2 - place[:, None] ** 2 - place**2).expand(400, 28, 28)  # discs, as objects are; noise is all runs
        corner = torch.rand(400, 2) * 600
        boxes = torch.cat([corner, corner + 300], 1)
        paste_masks_rle(masks[:2], boxes[:2], (1000, 1000))

        def status(name):
            return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = status("VmRSS")
        paste_masks_rle(masks, boxes, (1000, 1000))
        assert status("VmHWM") - before <= 0.05 * 400 * 1000 * 1000
