// The class of each pixel from its logits: lowest class of the largest one, NaN being the largest, as torch.argmax.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../common/bilinear.h"
#include "../common/dispatch.h"
#include "../common/simd.h"

namespace segkernels {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kPlaneBlock = 1024;  // pixels of one class read in a row: a page of float32
constexpr int64_t kTile = 64;          // pixels of channels_last logits whose best logits stay in registers and L1

// Neighbouring output pixels that share their two source columns and are computed as one vector.
template <typename acc_t>
constexpr int64_t kLanes = 32 / sizeof(acc_t);

// Half types are compared as integers that order like them; NaN is the largest, as it is for torch.argmax.
template <typename scalar_t>
struct Order {
  using key_t = scalar_t;
  static SEGKERNELS_INLINE key_t key(scalar_t value) {
    return value;
  }
  // NaN beats every number, and the first NaN stays.
  static SEGKERNELS_INLINE bool greater(key_t a, key_t b) {
    return !(a <= b) & (b == b);
  }
};

template <typename half_t, int32_t kInfinity>
struct HalfOrder {
  using key_t = int32_t;
  static SEGKERNELS_INLINE key_t key(half_t value) {
    const int32_t magnitude = value.x & 0x7fff;
    const int32_t number = value.x & 0x8000 ? -magnitude : magnitude;
    return magnitude > kInfinity ? 0x7fff : number;
  }
  static SEGKERNELS_INLINE bool greater(key_t a, key_t b) {
    return a > b;
  }
};
template <>
struct Order<half> : HalfOrder<half, 0x7c00> {};
template <>
struct Order<bfloat16> : HalfOrder<bfloat16, 0x7f80> {};

template <typename scalar_t>
using key_t = typename Order<scalar_t>::key_t;

// Lowest class of the largest logit of each of up to kPlaneBlock pixels; class c of pixel i lies at logits[c * step +
// i].
template <typename scalar_t>
SEGKERNELS_CLONES void argmax_planes(const scalar_t* logits, int64_t classes, int64_t step, int64_t count,
                                     int32_t* bins) {
  using order = Order<scalar_t>;
  key_t<scalar_t> best[kPlaneBlock];
  for (int64_t i = 0; i < count; ++i) {
    best[i] = order::key(logits[i]);
    bins[i] = 0;
  }
  for (int64_t c = 1; c < classes; ++c) {
    const scalar_t* plane = logits + c * step;
    // The hardware's prefetcher starts anew in every plane.
    for (int64_t i = 0; c + 1 < classes && i < count; i += kCacheLine / sizeof(scalar_t)) {
      __builtin_prefetch(plane + step + i);
    }
    for (int64_t i = 0; i < count; ++i) {
      const key_t<scalar_t> value = order::key(plane[i]);
      const bool take = order::greater(value, best[i]);
      best[i] = take ? value : best[i];
      bins[i] = take ? static_cast<int32_t>(c) : bins[i];
    }
  }
}

// The same for channels_last, class c of pixel i at logits[i * classes + c].
template <typename scalar_t>
SEGKERNELS_CLONES void argmax_pixels(const scalar_t* logits, int64_t classes, int64_t count, int32_t* bins) {
  using order = Order<scalar_t>;
  for (int64_t start = 0; start < count; start += kTile) {
    const int64_t tile = std::min(kTile, count - start);
    const scalar_t* pixels = logits + start * classes;
    key_t<scalar_t> best[kTile];
    int32_t* bin = bins + start;
    for (int64_t i = 0; i < tile; ++i) {
      best[i] = order::key(pixels[i * classes]);
      bin[i] = 0;
    }
    for (int64_t c = 1; c < classes; ++c) {
      for (int64_t i = 0; i < tile; ++i) {
        const key_t<scalar_t> value = order::key(pixels[i * classes + c]);
        const bool take = order::greater(value, best[i]);
        best[i] = take ? value : best[i];
        bin[i] = take ? static_cast<int32_t>(c) : bin[i];
      }
    }
  }
}

// Up to kLanes neighbouring output columns between the same two source columns.
struct ColumnRun {
  int64_t begin, source;
};

template <typename acc_t>
struct Columns {
  std::vector<ColumnRun> runs;
  std::vector<acc_t> low_weight, high_weight;  // [W + kLanes]
};

template <typename acc_t>
Columns<acc_t> upsampled_columns(int64_t in_w, int64_t out_w) {
  Columns<acc_t> columns;
  columns.low_weight.resize(out_w + kLanes<acc_t>);
  columns.high_weight.resize(out_w + kLanes<acc_t>);
  for (int64_t x = 0; x < out_w; ++x) {
    const BilinearTap<acc_t> tap = bilinear_tap<acc_t>(x, in_w, out_w);
    columns.low_weight[x] = tap.low_weight;
    columns.high_weight[x] = tap.high_weight;
    const std::vector<ColumnRun>& runs = columns.runs;
    if (runs.empty() || runs.back().source != tap.low || x - runs.back().begin == kLanes<acc_t>) {
      columns.runs.push_back({x, tap.low});
    }
  }
  return columns;
}

// Where class c of column x lies in a source row: c * class_step + x * column_step. A row ends in a copy of its last
// column, so that every column has a right neighbour.
struct RowLayout {
  int64_t classes, width, class_step, column_step;
  int64_t size() const {
    return classes * (width + 1);
  }
};

template <typename scalar_t, typename acc_t>
void load_row(const scalar_t* image, int64_t y, int64_t height, bool channels_last, const RowLayout& layout,
              acc_t* row) {
  const int64_t w = layout.width;
  for (int64_t c = 0; c < layout.classes; ++c) {
    for (int64_t x = 0; x <= w; ++x) {
      const int64_t column = std::min(x, w - 1);
      const int64_t from = channels_last ? (y * w + column) * layout.classes + c : (c * height + y) * w + column;
      row[c * layout.class_step + x * layout.column_step] = static_cast<acc_t>(image[from]);
    }
  }
}

template <typename acc_t>
SEGKERNELS_CLONES void blend_rows(const acc_t* low, const acc_t* high, acc_t low_weight, acc_t high_weight,
                                  int64_t count, acc_t* row) {
  for (int64_t i = 0; i < count; ++i) {
    row[i] = low[i] * low_weight + high[i] * high_weight;
  }
}

// bins has room for kLanes more than the row: each run writes whole vectors, the next one overwrites the excess.
template <typename acc_t>
SEGKERNELS_CLONES void argmax_upsampled_row(const acc_t* row, const RowLayout& layout, const Columns<acc_t>& columns,
                                            int32_t* bins) {
  using index_t = std::conditional_t<sizeof(acc_t) == 8, int64_t, int32_t>;
  typedef acc_t values_t __attribute__((vector_size(32)));
  typedef index_t indices_t __attribute__((vector_size(32)));
  for (const ColumnRun& run : columns.runs) {
    values_t low_weight, high_weight;
    __builtin_memcpy(&low_weight, columns.low_weight.data() + run.begin, sizeof(values_t));
    __builtin_memcpy(&high_weight, columns.high_weight.data() + run.begin, sizeof(values_t));
    const acc_t* low = row + run.source * layout.column_step;
    const acc_t* high = low + layout.column_step;
    values_t best = *low * low_weight + *high * high_weight;
    indices_t index = {};
    for (int64_t c = 1; c < layout.classes; ++c) {
      low += layout.class_step;
      high += layout.class_step;
      const values_t value = *low * low_weight + *high * high_weight;
      const indices_t take = ~(value <= best) & (best == best);
      best = take ? value : best;
      index = take ? indices_t{} + static_cast<index_t>(c) : index;
    }
    for (int64_t i = 0; i < kLanes<acc_t>; ++i) {
      bins[run.begin + i] = static_cast<int32_t>(index[i]);
    }
  }
}

}  // namespace segkernels
