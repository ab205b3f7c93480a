// A mask pasted row by row, for paste_masks and paste_masks_rle.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/paste_masks.h"
#include "../common/simd.h"

namespace segkernels {

// Pixels [begin, end) of the image and where each reads.
template <typename T>
struct PasteTaps {
  int64_t begin = 0, end = 0;
  std::vector<int32_t> low;
  std::vector<T> low_weight, high_weight;

  explicit PasteTaps(const PasteAxis<T>& axis) {
    PasteTap<T> tap;
    for (int64_t i = axis.begin; i < axis.end; ++i) {
      if (!axis.tap(i, tap)) {
        continue;
      }
      begin = low.empty() ? i : begin;
      end = i + 1;
      low.push_back(static_cast<int32_t>(tap.low));
      low_weight.push_back(tap.low_weight);
      high_weight.push_back(tap.high_weight);
    }
  }
};

// One mask ready to be pasted.
template <typename T>
struct PastedMask {
  PasteTaps<T> rows, columns;
  int64_t width;           // of the bordered mask
  std::vector<T> mask;     // [h + 3, w + 3]
  std::vector<T> blended;  // [w + 3], scratch

  PastedMask(const PasteMasksParams& p, const T* values, const T* box) : PastedMask(p, values, PasteAxes<T>(p, box)) {}

  PastedMask(const PasteMasksParams& p, const T* values, const PasteAxes<T>& axes)
      : rows(axes.rows), columns(axes.columns), width(p.mask_w + 3) {
    if (empty()) {
      return;
    }
    mask.assign((p.mask_h + 3) * width, T(0));
    for (int64_t y = 0; y < p.mask_h; ++y) {
      std::copy_n(values + y * p.mask_w, p.mask_w, mask.data() + (y + 1) * width + 1);
    }
    blended.resize(width);
  }

  bool empty() const {
    return rows.begin >= rows.end || columns.begin >= columns.end;
  }
};

template <typename T>
SEGKERNELS_CLONES void blend_mask_rows(const T* low, const T* high, T low_weight, T high_weight, int64_t width,
                                       T* blended) {
  for (int64_t k = 0; k < width; ++k) {
    blended[k] = blend(low[k], high[k], low_weight, high_weight);
  }
}

template <typename T>
SEGKERNELS_CLONES void threshold_pixels(const T* blended, const int32_t* low, const T* low_weight, const T* high_weight,
                                        int64_t count, T threshold, uint8_t* output) {
  for (int64_t i = 0; i < count; ++i) {
    output[i] = blend(blended[low[i]], blended[low[i] + 1], low_weight[i], high_weight[i]) >= threshold ? 1 : 0;
  }
}

// Columns [from, from + count) of image row y, counted from the first column of the box.
template <typename T>
void paste_row(PastedMask<T>& pasted, int64_t y, int64_t from, int64_t count, T threshold, uint8_t* output) {
  const int64_t row = y - pasted.rows.begin;
  const T* low = pasted.mask.data() + pasted.rows.low[row] * pasted.width;
  blend_mask_rows(low, low + pasted.width, pasted.rows.low_weight[row], pasted.rows.high_weight[row], pasted.width,
                  pasted.blended.data());
  threshold_pixels(pasted.blended.data(), pasted.columns.low.data() + from, pasted.columns.low_weight.data() + from,
                   pasted.columns.high_weight.data() + from, count, threshold, output);
}

}  // namespace segkernels
