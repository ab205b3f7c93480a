"""Where element `place` of plane (n, c) lies in memory, in either layout."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def split_offset(offset, channels, plane_size, CHANNELS_LAST: tl.constexpr):
    """Plane and place of a memory offset."""
    if CHANNELS_LAST:
        pixel = offset // channels
        n = pixel // plane_size
        return n * channels + (offset - pixel * channels), pixel - n * plane_size
    else:
        plane = offset // plane_size
        return plane, offset - plane * plane_size


@triton.jit
def element_offset(plane, place, channels, plane_size, CHANNELS_LAST: tl.constexpr):
    """Memory offset of a place in a plane."""
    if CHANNELS_LAST:
        n = plane // channels
        return (n * plane_size + place) * channels + (plane - n * channels)
    else:
        return plane * plane_size + place
