"""Greedy non-maximum suppression in Triton, for nms and batched_nms: boxes by class, then by score, a chunk at a time. Which
later boxes of the chunk each box excludes, as bits; who survives, tile after tile in one program; and what the survivors
exclude of later chunks. Memory does not grow with the number of boxes, and no step waits for the host."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from segkernels.triton._boxes import EXACT, acc, coordinate_type, intersection_over_union, load_box
from segkernels.triton._regions import bits, from_bits

CHUNK = 2048
#: Boxes of a tile: the bits of a word.
TILE = 32
#: Later boxes of a program.
LATER = 64


@triton.jit
def nms_mask_kernel(
    boxes_ptr, classes_ptr, mask_ptr, begin, count, threshold_bits,
    ACC: tl.constexpr, TILE: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """A word of each box of a tile."""
    tile = tl.program_id(0)
    word = tl.program_id(1)
    if word < tile:
        return
    row = begin + tile * TILE + tl.arange(0, TILE)
    column = begin + word * TILE + tl.arange(0, TILE)
    ax1, ay1, ax2, ay2 = load_box(boxes_ptr, row, row < count)
    bx1, by1, bx2, by2 = load_box(boxes_ptr, column, column < count)
    same = tl.load(classes_ptr + row, row < count, 0)[:, None] == tl.load(classes_ptr + column, column < count, 0)[None, :]
    overlap = intersection_over_union(
        bx1[None, :], by1[None, :], bx2[None, :], by2[None, :],
        ax1[:, None], ay1[:, None], ax2[:, None], ay2[:, None], ACC,
    )  # fmt: skip
    hit = same & (overlap > from_bits(threshold_bits, ACC)) & (column[None, :] > row[:, None]) & (column < count)[None, :]
    words = tl.sum(hit.to(tl.int32) << tl.arange(0, TILE)[None, :], axis=1)
    tl.store(mask_ptr + (row - begin) * WORDS + word, words)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def nms_reduce_kernel(
    excluded_ptr, mask_ptr, kept_ptr, ranks_ptr, begin, count, tiles, TILE: tl.constexpr, WORDS: tl.constexpr
):
    lane = tl.arange(0, TILE)
    word = tl.arange(0, WORDS)
    # What boxes of this chunk exclude so far.
    excluded = tl.zeros((WORDS,), tl.int32)
    for tile in range(tiles):
        row = begin + tile * TILE + lane
        before = tl.load(excluded_ptr + row, row < count, 1).to(tl.int32)
        diagonal = tl.load(mask_ptr + (tile * TILE + lane) * WORDS + tile)
        closed = tl.sum(tl.where(word == tile, excluded, 0), axis=0) | tl.sum(before << lane, axis=0)
        for i in range(TILE):
            own = tl.sum(tl.where(lane == i, diagonal, 0), axis=0)
            closed = closed | tl.where((closed >> i) & 1 == 0, own, 0)
        stays = ((closed >> lane) & 1) == 0
        later = (word > tile)[None, :] & stays[:, None]
        rows = tl.load(mask_ptr + (tile * TILE + lane)[:, None] * WORDS + word[None, :], mask=later, other=0)
        excluded = excluded | tl.reduce(rows, 0, _either)
        tl.store(excluded_ptr + row, 1 - stays.to(tl.uint8), mask=row < count)
        rank = tl.load(ranks_ptr + row, row < count, 0)
        tl.store(kept_ptr + rank, stays.to(tl.uint8), mask=row < count)


@triton.jit
def nms_exclude_kernel(
    boxes_ptr, classes_ptr, excluded_ptr, begin, end, count, threshold_bits, ACC: tl.constexpr, LATER: tl.constexpr
):
    """The chunk from ``begin`` to ``end`` on later boxes."""
    later = end + tl.program_id(0) * LATER + tl.arange(0, LATER)
    valid = later < count
    x1, y1, x2, y2 = load_box(boxes_ptr, later, valid)
    own = tl.load(classes_ptr + later, valid, 0)
    hit = tl.load(excluded_ptr + later, valid, 1) != 0
    for k in range(begin, end):
        if tl.load(excluded_ptr + k) == 0:
            at = boxes_ptr + tl.full((), k, tl.int64) * 4
            overlap = intersection_over_union(
                x1, y1, x2, y2, tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), ACC
            )
            hit = hit | ((overlap > from_bits(threshold_bits, ACC)) & (own == tl.load(classes_ptr + k)))
    tl.store(excluded_ptr + later, hit.to(tl.uint8), mask=valid)


def threshold_below(threshold: float, dtype: torch.dtype) -> float:
    """The largest value of ``dtype`` not above the threshold: comparing with it is comparing with the threshold."""
    rounded = torch.tensor(threshold, dtype=dtype, device="cpu")
    if rounded.item() > threshold:
        rounded = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return rounded.item()


def suppress(boxes, scores, idxs, iou_threshold):
    """Positions by decreasing score, int64 [N], and which of them survive, bool [N]; ``idxs`` is None for one class."""
    count = len(boxes)
    order = scores.sort(descending=True, stable=True).indices
    if idxs is None:
        classes, ranks = torch.zeros_like(order), torch.arange(count, device=boxes.device)
    else:
        classes, ranks = idxs[order].sort(stable=True)
    dtype = coordinate_type(boxes)
    corners = boxes[order[ranks]].to(dtype).contiguous()
    threshold = bits(threshold_below(iou_threshold, dtype))
    kept = torch.empty(count, dtype=torch.bool, device=boxes.device)
    excluded = torch.zeros(count, dtype=torch.uint8, device=boxes.device)
    words = CHUNK // TILE
    mask = torch.empty((CHUNK, words), dtype=torch.int32, device=boxes.device)
    for begin in range(0, count, CHUNK):
        end = min(begin + CHUNK, count)
        tiles = triton.cdiv(end - begin, TILE)
        nms_mask_kernel[(tiles, tiles)](
            corners, classes, mask, begin, count, threshold, ACC=acc(dtype), TILE=TILE, WORDS=words, **EXACT
        )
        nms_reduce_kernel[(1,)](
            excluded, mask, kept.view(torch.uint8), ranks, begin, count, tiles, TILE=TILE, WORDS=words
        )  # fmt: skip
        if end < count:
            nms_exclude_kernel[(triton.cdiv(count - end, LATER),)](
                corners, classes, excluded, begin, end, count, threshold, ACC=acc(dtype), LATER=LATER, **EXACT
            )
    return order, kept


def nms(boxes, scores, iou_threshold):
    order, kept = suppress(boxes, scores, None, iou_threshold)
    return order[kept]


def compile_cases():
    """Yields ``(kernel, types of its arguments, its constants)`` for tests/triton/test_compile.py."""
    for value, dtype in (("*fp32", torch.float32), ("*fp64", torch.float64)):
        types = {"boxes_ptr": value, "classes_ptr": "*i64", "excluded_ptr": "*u8", "mask_ptr": "*i32", "kept_ptr": "*u8"}
        types |= {"ranks_ptr": "*i64", "threshold_bits": "i64"}
        constants = {"ACC": acc(dtype), "TILE": TILE, "WORDS": CHUNK // TILE, "LATER": LATER}
        yield nms_mask_kernel, types, constants
        yield nms_exclude_kernel, types, constants
    yield nms_reduce_kernel, types, constants
