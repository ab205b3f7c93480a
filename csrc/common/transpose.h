// Transposes small matrices of float and double, eight by eight in registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"
#include "vecmath.h"

namespace segkernels {

SEGKERNELS_INLINE void transpose_8x8(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  f32x8 r[8], s[8];
  for (int i = 0; i < 8; ++i) {
    r[i] = load_vector<f32x8>(from + i * from_stride);
  }
  for (int i = 0; i < 8; i += 2) {
    s[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    s[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = __builtin_shufflevector(s[i + j], s[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      r[i + 2 * j + 1] = __builtin_shufflevector(s[i + j], s[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    store_vector(to + i * to_stride, __builtin_shufflevector(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11));
    store_vector(to + (i + 4) * to_stride, __builtin_shufflevector(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15));
  }
}

// to[c][r] = from[r][c]; rows of both are contiguous. The last eight of an uneven side are done twice over in part.
template <typename T>
SEGKERNELS_CLONES void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                                 int64_t to_stride) {
  if constexpr (sizeof(T) == 4) {
    if (rows >= 8 && columns >= 8) {
      for (int64_t c = 0; c < columns; c += 8) {
        const int64_t column = c + 8 <= columns ? c : columns - 8;
        for (int64_t r = 0; r < rows; r += 8) {
          const int64_t row = r + 8 <= rows ? r : rows - 8;
          transpose_8x8(from + row * from_stride + column, from_stride, to + column * to_stride + row, to_stride);
        }
      }
      return;
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      to[c * to_stride + r] = from[r * from_stride + c];
    }
  }
}

}  // namespace segkernels
