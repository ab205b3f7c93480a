// The inner loops of the depthwise-separable convolution: a depthwise row into the pointwise product's operand, and the
// product's sums into the output.
#pragma once

#include "../common/depthwise_conv2d.h"
#include "../common/dispatch.h"
#include "../common/gemm.h"

namespace segkernels {

// The activation as a lower bound, which needs no branch: 0, or -inf for none. NaN stays, as in torch.
template <typename V, typename acc_t>
SEGKERNELS_INLINE V at_least(V value, acc_t least) {
  return value < least ? V{} + least : value;
}

// A depthwise row into panels of kCols columns, from column `col` on.
template <typename acc_t>
SEGKERNELS_CLONES void place_columns(const acc_t* from, int64_t count, acc_t least, int64_t col, int64_t panel_step,
                                     acc_t* panels) {
  constexpr int64_t kCols = Gemm<acc_t>::kCols;
  while (count > 0) {
    const int64_t at = col % kCols;
    const int64_t run = std::min(count, kCols - at);
    acc_t* to = panels + col / kCols * panel_step + at;
    for (int64_t i = 0; i < run; ++i) {
      to[i] = at_least(from[i], least);
    }
    from += run;
    col += run;
    count -= run;
  }
}

// `count` rows of kCols sums into rows of the output, `width` of each: sums + the row's bias, activated.
template <typename T, typename acc_t>
SEGKERNELS_CLONES void store_sums(const acc_t* from, const acc_t* bias, acc_t least, int64_t count, int64_t width,
                                  int64_t to_step, T* to) {
  using G = Gemm<acc_t>;
  for (int64_t row = 0; row < count; ++row, from += G::kCols, to += to_step) {
    acc_t values[G::kCols];
    acc_t* whole = values;
    if constexpr (std::is_same_v<T, acc_t>) {
      whole = width == G::kCols ? to : values;
    }
#pragma GCC unroll 3
    for (int v = 0; v < G::kVectors; ++v) {
      using unaligned_vec = typename G::unaligned_vec;
      const typename G::vec sum = *reinterpret_cast<const unaligned_vec*>(from + v * G::kLanes) + bias[row];
      *reinterpret_cast<unaligned_vec*>(whole + v * G::kLanes) = at_least(sum, least);
    }
    if (whole == values) {
      for (int64_t i = 0; i < width; ++i) {
        store_value(to[i], values[i]);
      }
    }
  }
}

}  // namespace segkernels
