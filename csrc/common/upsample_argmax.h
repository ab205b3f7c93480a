// The class of each pixel of bilinearly upsampled logits, found without writing the upsampled logits: lowest class of
// the largest one, NaN being the largest, as torch.argmax.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "simd.h"
#include "upsample_columns.h"

namespace segkernels {

// Where class c of column x lies in a source row: c * class_step + x * column_step.
struct RowLayout {
  int64_t classes, width, class_step, column_step;
  int64_t size() const {
    return classes * width;
  }
};

template <typename scalar_t, typename acc_t>
void load_row(const scalar_t* image, int64_t y, int64_t height, bool channels_last, const RowLayout& layout,
              acc_t* row) {
  const int64_t w = layout.width;
  for (int64_t c = 0; c < layout.classes; ++c) {
    for (int64_t x = 0; x < w; ++x) {
      const int64_t from = channels_last ? (y * w + x) * layout.classes + c : (c * height + y) * w + x;
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
    const acc_t* low = row + run.low * layout.column_step;
    const acc_t* high = row + run.high * layout.column_step;
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

// Classes of the upsampled rows of dense logits, one row after the other; two source rows are kept between calls.
template <typename scalar_t>
class UpsampledArgmax {
 public:
  using acc_t = accumulate_t<scalar_t>;

  UpsampledArgmax(const scalar_t* logits,  // [N, C, h, w]
                  int64_t classes, bool channels_last, const BilinearAxis<acc_t>& rows, const Columns<acc_t>& columns,
                  int64_t in_w)
      : logits_(logits),
        channels_last_(channels_last),
        rows_(rows),
        columns_(columns),
        layout_{classes, in_w, channels_last ? 1 : in_w, channels_last ? classes : 1},
        low_(layout_.size()),
        high_(layout_.size()),
        blended_(layout_.size()) {}

  // bins has room for kLanes more than the row.
  void classify(int64_t image, int64_t y, int32_t* bins) {
    const BilinearTap<acc_t> tap = rows_.tap(y);
    const int64_t first = image * rows_.in_size;
    if (first + tap.low == high_loaded_) {
      std::swap(low_, high_);
      std::swap(low_loaded_, high_loaded_);
    }
    load(image, tap.low, low_loaded_, low_);
    load(image, tap.high, high_loaded_, high_);
    blend_rows(low_.data(), high_.data(), tap.low_weight, tap.high_weight, layout_.size(), blended_.data());
    argmax_upsampled_row(blended_.data(), layout_, columns_, bins);
  }

 private:
  void load(int64_t image, int64_t y, int64_t& loaded, std::vector<acc_t>& row) {
    if (image * rows_.in_size + y != loaded) {
      const scalar_t* source = logits_ + image * layout_.classes * rows_.in_size * layout_.width;
      load_row(source, y, rows_.in_size, channels_last_, layout_, row.data());
      loaded = image * rows_.in_size + y;
    }
  }

  const scalar_t* logits_;
  bool channels_last_;
  const BilinearAxis<acc_t>& rows_;
  const Columns<acc_t>& columns_;
  RowLayout layout_;
  std::vector<acc_t> low_, high_, blended_;
  int64_t low_loaded_ = -1;
  int64_t high_loaded_ = -1;
};

}  // namespace segkernels
