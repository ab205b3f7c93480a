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

// `pixels` groups of kDepthwiseLanes channels into rows of pixels; `channel_step` apart, the first `channels` of them.
template <typename acc_t>
SEGKERNELS_CLONES void place_pixels(const acc_t* from, int64_t pixels, acc_t least, int64_t channels,
                                    int64_t channel_step, int64_t pixel_step, acc_t* to) {
  if (channel_step == 1 && channels == kDepthwiseLanes) {
    for (int64_t x = 0; x < pixels; ++x, from += kDepthwiseLanes, to += pixel_step) {
      for (int64_t c = 0; c < kDepthwiseLanes; ++c) {
        to[c] = at_least(from[c], least);
      }
    }
    return;
  }
  for (int64_t x = 0; x < pixels; ++x, from += kDepthwiseLanes, to += pixel_step) {
    for (int64_t c = 0; c < channels; ++c) {
      to[c * channel_step] = at_least(from[c], least);
    }
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

// One block of depth of pixels [pixels][row_step] times a panel of packed weights. The last block goes straight from
// registers to the output, `width` channels of each pixel: sums + bias, activated. Earlier ones wait in `tiles`.
template <typename T, typename acc_t>
SEGKERNELS_CLONES void multiply_pixels(const acc_t* hidden, int64_t pixels, int64_t row_step, int64_t depth,
                                       const acc_t* weight, acc_t* tiles, bool first_block, bool last_block,
                                       const acc_t* bias, acc_t least, int64_t width, int64_t to_step, T* to) {
  using G = RowGemm<acc_t>;
  for (int64_t pixel = 0; pixel < pixels; pixel += G::kRows, tiles += G::kTile) {
    const acc_t* const row = hidden + pixel * row_step;
    const acc_t* const rows[] = {
        row, row + row_step, row + 2 * row_step, row + 3 * row_step, row + 4 * row_step, row + 5 * row_step};
    const auto load = [&rows](int r, int64_t k) SEGKERNELS_INLINE_LAMBDA { return rows[r][k]; };
    if (!last_block) {
      G::tile_product(depth, load, weight, tiles, !first_block);
      continue;
    }
    typename G::Sums sums = {};
    G::add_products(depth, load, weight, sums);
    const int64_t count = std::min<int64_t>(G::kRows, pixels - pixel);
    const bool whole = std::is_same_v<T, acc_t> && width == G::kCols;
    acc_t values[G::kRows][G::kCols];
#pragma GCC unroll 6
    for (int r = 0; r < G::kRows; ++r) {
      if (r >= count) {
        break;
      }
      acc_t* target = values[r];
      if constexpr (std::is_same_v<T, acc_t>) {
        target = whole ? to + (pixel + r) * to_step : target;
      }
#pragma GCC unroll 3
      for (int v = 0; v < G::kVectors; ++v) {
        using unaligned_vec = typename G::unaligned_vec;
        typename G::vec sum = sums[r][v];
        if (!first_block) {
          sum += *reinterpret_cast<const unaligned_vec*>(tiles + r * G::kCols + v * G::kLanes);
        }
        sum += *reinterpret_cast<const unaligned_vec*>(bias + v * G::kLanes);
        *reinterpret_cast<unaligned_vec*>(target + v * G::kLanes) = at_least(sum, least);
      }
    }
    for (int64_t r = 0; !whole && r < count; ++r) {
      for (int64_t i = 0; i < width; ++i) {
        store_value(to[(pixel + r) * to_step + i], values[r][i]);
      }
    }
  }
}

}  // namespace segkernels
