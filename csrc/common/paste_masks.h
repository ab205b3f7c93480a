// Where each mask lands in the image and what each pixel reads of it, for paste_masks and paste_masks_rle on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "bilinear.h"
#include "boxes.h"
#include "simd.h"

namespace segkernels {

enum class PasteStyle : int64_t { kTorchvision = 0, kDetectron2 = 1 };

struct PasteMasksParams {
  int64_t count, mask_h, mask_w, image_h, image_w;
  double threshold;
  PasteStyle style;
};

inline PasteMasksParams paste_masks_params(const Tensor& masks, const Tensor& boxes,
                                           const std::vector<int64_t>& image_size, double threshold, int64_t style,
                                           const char* op) {
  check_dim(masks, 3, op, "masks");
  check_dim(boxes, 2, op, "boxes");
  check_boxes(boxes, op, "boxes");
  STD_TORCH_CHECK(boxes.size(0) == masks.size(0), op, ": expected one box a mask, got ", boxes.size(0), " for ",
                  masks.size(0));
  STD_TORCH_CHECK(image_size.size() == 2 && image_size[0] >= 0 && image_size[1] >= 0 && image_size[0] < INT32_MAX &&
                      image_size[1] < INT32_MAX,
                  op, ": expected image_size of two sizes in [0, 2^31)");
  STD_TORCH_CHECK(style == 0 || style == 1, op, ": expected style 0 (torchvision) or 1 (detectron2), got ", style);
  STD_TORCH_CHECK(masks.size(1) > 0 && masks.size(2) > 0, op, ": expected masks of at least one pixel, got ",
                  shape_string(masks));
  return {masks.size(0), masks.size(1), masks.size(2), image_size[0], image_size[1], threshold, PasteStyle{style}};
}

inline ScalarType paste_type(const Tensor& masks, const Tensor& boxes) {
  const bool wide = masks.scalar_type() == ScalarType::Double || boxes.scalar_type() == ScalarType::Double;
  return wide ? ScalarType::Double : ScalarType::Float;
}

// Pixels [begin, end) of the image and, for each, where it reads: source[low] * low_weight + source[low + 1] *
// high_weight, in the mask with a border of zeros (one before, two after).
template <typename T>
struct PasteAxis {
  int64_t begin = 0, end = 0;
  std::vector<int32_t> low;
  std::vector<T> low_weight, high_weight;

  void add(int64_t at, T weight_low, T weight_high) {
    low.push_back(static_cast<int32_t>(at));
    low_weight.push_back(weight_low);
    high_weight.push_back(weight_high);
  }
};

// torchvision: the padded mask resized to whole pixels. `scale` is (w + 2) / w along both axes, also where h differs.
template <typename T>
PasteAxis<T> torchvision_axis(T first, T last, double scale, int64_t mask_size, int64_t image_size) {
  PasteAxis<T> axis;
  const T half = (last - first) * T(0.5) * static_cast<T>(scale);
  const T center = (last + first) * T(0.5);
  const T low = center - half, high = center + half;
  if (!std::isfinite(low) || !std::isfinite(high)) {
    return axis;
  }
  constexpr T kFar = T(1ll << 60);  // clamped before the conversion, which is undefined beyond int64
  const int64_t start = static_cast<int64_t>(std::clamp(low, -kFar, kFar));
  const int64_t stop = static_cast<int64_t>(std::clamp(high, -kFar, kFar)) + 1;
  const int64_t size = std::max<int64_t>(stop - start, 1);
  axis.begin = std::clamp<int64_t>(start, 0, image_size);
  axis.end = std::clamp<int64_t>(stop, axis.begin, image_size);
  for (int64_t i = axis.begin; i < axis.end; ++i) {
    const BilinearTap<T> tap = bilinear_axis<T>(mask_size + 2, size).tap(i - start);
    axis.add(tap.low, tap.low_weight, tap.high_weight);
  }
  return axis;
}

// detectron2: grid_sample at the pixels' centres, zeros outside the mask.
template <typename T>
PasteAxis<T> detectron2_axis(T first, T last, int64_t mask_size, int64_t image_size) {
  PasteAxis<T> axis;
  const T size = last - first;
  if (!std::isfinite(first) || !std::isfinite(size) || !(size > 0)) {
    return axis;
  }
  // Within one mask pixel of the box, to begin with; clamped before the conversion.
  const T limit = static_cast<T>(image_size);
  const T reach = size / static_cast<T>(mask_size) + 1;
  axis.begin = static_cast<int64_t>(std::clamp(std::floor(first - reach), T(0), limit));
  axis.end = axis.begin;
  const int64_t stop = std::min(image_size, static_cast<int64_t>(std::clamp(std::ceil(last + reach), T(0), limit)));
  for (int64_t i = axis.begin; i < stop; ++i) {
    const T grid = (static_cast<T>(i) + T(0.5) - first) / size * 2 - 1;
    const T source = ((grid + 1) * static_cast<T>(mask_size) - 1) / 2;
    if (!(source > T(-1) && source < static_cast<T>(mask_size))) {
      axis.begin += axis.low.empty();
      continue;
    }
    const T floor = std::floor(source);
    axis.add(static_cast<int64_t>(floor) + 1, floor + 1 - source, source - floor);
  }
  axis.end = axis.begin + static_cast<int64_t>(axis.low.size());
  return axis;
}

// One mask ready to be pasted, row by row.
template <typename T>
struct PastedMask {
  PasteAxis<T> rows, columns;
  int64_t width;           // of the bordered mask
  std::vector<T> mask;     // [h + 3, w + 3]
  std::vector<T> blended;  // [w + 3], scratch

  PastedMask(const PasteMasksParams& p, const T* values, const T* box) : width(p.mask_w + 3) {
    if (!(std::isfinite(box[0]) && std::isfinite(box[1]) && std::isfinite(box[2]) && std::isfinite(box[3]))) {
      return;
    }
    if (p.style == PasteStyle::kTorchvision) {
      const double scale = static_cast<double>(p.mask_w + 2) / static_cast<double>(p.mask_w);
      rows = torchvision_axis(box[1], box[3], scale, p.mask_h, p.image_h);
      columns = torchvision_axis(box[0], box[2], scale, p.mask_w, p.image_w);
    } else {
      rows = detectron2_axis(box[1], box[3], p.mask_h, p.image_h);
      columns = detectron2_axis(box[0], box[2], p.mask_w, p.image_w);
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
    blended[k] = low_weight * low[k] + high_weight * high[k];
  }
}

template <typename T>
SEGKERNELS_CLONES void threshold_pixels(const T* blended, const int32_t* low, const T* low_weight, const T* high_weight,
                                        int64_t count, T threshold, uint8_t* output) {
  for (int64_t i = 0; i < count; ++i) {
    const T value = low_weight[i] * blended[low[i]] + high_weight[i] * blended[low[i] + 1];
    output[i] = value >= threshold ? 1 : 0;
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
