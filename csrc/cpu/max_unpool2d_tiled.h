// Max-unpooling of 2x2 windows that tile the plane, every index inside its own window: one row of a plane, or all
// channels of one channels_last entry, at a time. Each function tells whether all indices were.
#pragma once

#include <algorithm>
#include <cstring>

#include "../common/max_unpool2d.h"
#include "../common/simd.h"

namespace segkernels {
namespace {

constexpr int64_t kShortRow = 16;  // below it three vector loops a row cost more than they save
constexpr int64_t kChunk = 128;    // entries whose window offsets are held on the stack

// Entries' indices of either type, so that the loops over values are instantiated by element size alone.
struct IndexRun {
  const int64_t* positions;  // flat, or null where there are
  const uint8_t* offsets;    // window offsets

  SEGKERNELS_INLINE IndexRun(const int64_t* data) : positions(data), offsets(nullptr) {}
  SEGKERNELS_INLINE IndexRun(const uint8_t* data) : positions(nullptr), offsets(data) {}

  SEGKERNELS_INLINE IndexRun operator+(int64_t entries) const {
    return positions ? IndexRun(positions + entries) : IndexRun(offsets + entries);
  }
};

// Window offsets (0..kh*kw-1) of a run of entries in one pooled row, kernel == stride, no padding; false when any index
// lies outside its own window. 2x2 windows only: the caller checks.
SEGKERNELS_INLINE bool window_offsets_2x2(const IndexRun& indices, int64_t count, int64_t base, int64_t out_w,
                                          int64_t step, int32_t* offsets) {
  if (!indices.positions) {
    int32_t seen = 0;
    for (int64_t i = 0; i < count; ++i) {
      offsets[i] = indices.offsets[i];
      seen |= offsets[i];
    }
    return seen < 4;
  }
  // Anything outside [0, 2^31) would alias after narrowing, so its high bits are collected.
  uint64_t high = 0;
  int32_t wrong = 0;
  const int32_t w = static_cast<int32_t>(out_w);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = indices.positions[i];
    high |= static_cast<uint64_t>(index) >> 31;
    // Unsigned: an index from outside may overflow here, and is told by `high` or `wrong`.
    const int32_t distance =
        static_cast<int32_t>(static_cast<uint32_t>(index) - static_cast<uint32_t>(base + i * step));
    const int32_t below = distance >= w ? 2 : 0;
    const int32_t right = distance - (distance >= w ? w : 0);
    offsets[i] = below + right;
    wrong |= right & ~1;
  }
  return high == 0 && wrong == 0;
}

// Whether an int64 index lies in the 2x2 window at `corner`, and a place inside the plane in either case. No branch:
// the place of a maximum is not to be predicted. Unsigned, so that stray indices may wrap.
struct ShortEntry {
  bool own;
  int64_t position;

  SEGKERNELS_INLINE ShortEntry(int64_t index, int64_t corner, int64_t out_w) {
    const uint64_t distance = static_cast<uint64_t>(index) - static_cast<uint64_t>(corner);
    own = (distance < 2) | (distance - static_cast<uint64_t>(out_w) < 2);
    position = own ? index : corner;
  }
};

// One pooled row of a plane into its two output rows. The tail beyond the windows is zero.
template <typename T>
SEGKERNELS_INLINE bool unpool_row_2x2(const T* input, IndexRun indices, int64_t y, int64_t in_w, int64_t out_w, T* row0,
                                      T* row1) {
  int32_t offsets[kChunk];
  for (int64_t x0 = 0; x0 < in_w; x0 += kChunk) {
    const int64_t count = std::min(kChunk, in_w - x0);
    if (!window_offsets_2x2(indices + x0, count, 2 * y * out_w + 2 * x0, out_w, 2, offsets)) {
      return false;
    }
    const T* in = input + x0;
    T* out0 = row0 + 2 * x0;
    T* out1 = row1 + 2 * x0;
    for (int64_t i = 0; i < count; ++i) {
      out0[2 * i] = offsets[i] == 0 ? in[i] : T(0);
      out0[2 * i + 1] = offsets[i] == 1 ? in[i] : T(0);
    }
    for (int64_t i = 0; i < count; ++i) {
      out1[2 * i] = offsets[i] == 2 ? in[i] : T(0);
      out1[2 * i + 1] = offsets[i] == 3 ? in[i] : T(0);
    }
  }
  for (int64_t x = 2 * in_w; x < out_w; ++x) {
    row0[x] = row1[x] = T(0);
  }
  return true;
}

// One plane; false when an index lies outside its own window. Planes of short rows are cleared and scattered into
// whole.
template <typename T>
SEGKERNELS_CLONES bool unpool_plane_2x2(const MaxUnpool2dParams& p, const T* input, IndexRun indices, T* output) {
  const int64_t in_w = p.in_w;
  const int64_t out_w = p.out_w;
  if (indices.positions && in_w < kShortRow) {
    std::memset(static_cast<void*>(output), 0, p.out_plane() * sizeof(T));
    bool own = true;
    for (int64_t y = 0; y < p.in_h; ++y) {
      for (int64_t x = 0; x < in_w; ++x) {
        const ShortEntry entry(indices.positions[y * in_w + x], 2 * y * out_w + 2 * x, out_w);
        own &= entry.own;
        output[entry.position] = input[y * in_w + x];
      }
    }
    return own;
  }
  for (int64_t y = 0; y < p.in_h; ++y) {
    T* row = output + 2 * y * out_w;
    if (!unpool_row_2x2(input + y * in_w, indices + y * in_w, y, in_w, out_w, row, row + out_w)) {
      return false;
    }
  }
  const int64_t covered = 2 * p.in_h * out_w;
  std::memset(static_cast<void*>(output + covered), 0, (p.out_plane() - covered) * sizeof(T));
  return true;
}

template <typename T>
SEGKERNELS_INLINE bool unpool_row_2x2_backward(const T* row0, const T* row1, IndexRun indices, int64_t y, int64_t in_w,
                                               int64_t out_w, T* grad_input) {
  int32_t offsets[kChunk];
  for (int64_t x0 = 0; x0 < in_w; x0 += kChunk) {
    const int64_t count = std::min(kChunk, in_w - x0);
    if (!window_offsets_2x2(indices + x0, count, 2 * y * out_w + 2 * x0, out_w, 2, offsets)) {
      return false;
    }
    const T* g0 = row0 + 2 * x0;
    const T* g1 = row1 + 2 * x0;
    for (int64_t i = 0; i < count; ++i) {
      // All four are loaded before the choice: a load under a condition keeps the loop scalar.
      const T window[4] = {g0[2 * i], g0[2 * i + 1], g1[2 * i], g1[2 * i + 1]};
      const T left = offsets[i] & 2 ? window[2] : window[0];
      const T right = offsets[i] & 2 ? window[3] : window[1];
      grad_input[x0 + i] = offsets[i] & 1 ? right : left;
    }
  }
  return true;
}

template <typename T>
SEGKERNELS_CLONES bool unpool_plane_2x2_backward(const MaxUnpool2dParams& p, const T* grad_output, IndexRun indices,
                                                 T* grad_input) {
  const int64_t in_w = p.in_w;
  const int64_t out_w = p.out_w;
  if (indices.positions && in_w < kShortRow) {
    bool own = true;
    for (int64_t y = 0; y < p.in_h; ++y) {
      for (int64_t x = 0; x < in_w; ++x) {
        const ShortEntry entry(indices.positions[y * in_w + x], 2 * y * out_w + 2 * x, out_w);
        own &= entry.own;
        grad_input[y * in_w + x] = grad_output[entry.position];
      }
    }
    return own;
  }
  for (int64_t y = 0; y < p.in_h; ++y) {
    const T* row = grad_output + 2 * y * out_w;
    if (!unpool_row_2x2_backward(row, row + out_w, indices + y * in_w, y, in_w, out_w, grad_input + y * in_w)) {
      return false;
    }
  }
  return true;
}

// Channels_last: all channels of one entry at once; `pixel[k]` is the output pixel of window offset k.
template <typename T>
SEGKERNELS_CLONES bool unpool_pixel_2x2(const T* input, IndexRun indices, int64_t channels, int64_t base, int64_t out_w,
                                        T* const pixel[4]) {
  int32_t offsets[kChunk];
  for (int64_t c0 = 0; c0 < channels; c0 += kChunk) {
    const int64_t count = std::min(kChunk, channels - c0);
    if (!window_offsets_2x2(indices + c0, count, base, out_w, 0, offsets)) {
      return false;
    }
    for (int k = 0; k < 4; ++k) {
      T* out = pixel[k] + c0;
      for (int64_t i = 0; i < count; ++i) {
        out[i] = offsets[i] == k ? input[c0 + i] : T(0);
      }
    }
  }
  return true;
}

template <typename T>
SEGKERNELS_CLONES bool unpool_pixel_2x2_backward(const T* const pixel[4], IndexRun indices, int64_t channels,
                                                 int64_t base, int64_t out_w, T* grad_input) {
  int32_t offsets[kChunk];
  for (int64_t c0 = 0; c0 < channels; c0 += kChunk) {
    const int64_t count = std::min(kChunk, channels - c0);
    if (!window_offsets_2x2(indices + c0, count, base, out_w, 0, offsets)) {
      return false;
    }
    for (int64_t i = 0; i < count; ++i) {
      const T window[4] = {pixel[0][c0 + i], pixel[1][c0 + i], pixel[2][c0 + i], pixel[3][c0 + i]};
      const T top = offsets[i] & 1 ? window[1] : window[0];
      const T bottom = offsets[i] & 1 ? window[3] : window[2];
      grad_input[c0 + i] = offsets[i] & 2 ? bottom : top;
    }
  }
  return true;
}

bool tiles_2x2(const MaxUnpool2dParams& p) {
  return p.kernel_h == 2 && p.kernel_w == 2 && p.stride_h == 2 && p.stride_w == 2 && p.pad_h == 0 && p.pad_w == 0 &&
         p.out_h >= 2 * p.in_h && p.out_w >= 2 * p.in_w && p.out_plane() < INT32_MAX;
}

}  // namespace
}  // namespace segkernels
