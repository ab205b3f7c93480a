// Where each mask lands in the image and what each pixel reads of it: maths that the CPU and the CUDA kernels share.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "bilinear.h"
#include "boxes.h"

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

// source[low] * low_weight + source[low + 1] * high_weight, in the mask with a border of zeros: one before, two after.
template <typename T>
struct PasteTap {
  int64_t low;
  T low_weight, high_weight;
};

// Pixels [begin, end) of the image, or fewer, and where each reads.
template <typename T>
struct PasteAxis {
  int64_t begin, end;
  PasteStyle style;
  // torchvision: the bordered mask resized to whole pixels from `start` on.
  int64_t start;
  BilinearAxis<T> resized;
  // detectron2: grid_sample at the pixels' centres, zeros outside the mask.
  T first, extent, mask_size;

  // False where the pixel reads nothing of the mask.
  SEGKERNELS_HOST_DEVICE bool tap(int64_t pixel, PasteTap<T>& tap) const {
    if (pixel < begin || pixel >= end) {
      return false;
    }
    if (style == PasteStyle::kTorchvision) {
      const BilinearTap<T> at = resized.tap(pixel - start);
      tap = {at.low, at.low_weight, at.high_weight};
      return true;
    }
    const T grid = product((static_cast<T>(pixel) + T(0.5) - first) / extent, T(2)) - 1;
    const T source = (product(grid + 1, mask_size) - 1) / 2;
    if (!(source > T(-1) && source < mask_size)) {
      return false;
    }
    const T floor = std::floor(source);
    tap = {static_cast<int64_t>(floor) + 1, floor + 1 - source, source - floor};
    return true;
  }
};

template <typename T>
SEGKERNELS_HOST_DEVICE T clamped(T value, T low, T high) {
  return value < low ? low : (high < value ? high : value);
}

// `scale` is (w + 2) / w along both axes, also where h differs.
template <typename T>
SEGKERNELS_HOST_DEVICE PasteAxis<T> torchvision_axis(T first, T last, double scale, int64_t mask_size,
                                                     int64_t image_size) {
  PasteAxis<T> axis{};
  const T half = product(product(last - first, T(0.5)), static_cast<T>(scale));
  const T center = product(last + first, T(0.5));
  const T low = center - half, high = center + half;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  if (!(low > -kInfinity && low < kInfinity && high > -kInfinity && high < kInfinity)) {
    return axis;
  }
  constexpr T kFar = T(1ll << 60);  // clamped before the conversion, which is undefined beyond int64
  const int64_t stop = static_cast<int64_t>(clamped(high, -kFar, kFar)) + 1;
  axis.start = static_cast<int64_t>(clamped(low, -kFar, kFar));
  axis.begin = clamped<int64_t>(axis.start, 0, image_size);
  axis.end = clamped<int64_t>(stop, axis.begin, image_size);
  const int64_t size = stop - axis.start > 1 ? stop - axis.start : 1;
  axis.resized = {mask_size + 2, size, static_cast<T>(mask_size + 2) / static_cast<T>(size), false};
  return axis;
}

template <typename T>
SEGKERNELS_HOST_DEVICE PasteAxis<T> detectron2_axis(T first, T last, int64_t mask_size, int64_t image_size) {
  PasteAxis<T> axis{};
  axis.style = PasteStyle::kDetectron2;
  axis.first = first;
  axis.extent = last - first;
  axis.mask_size = static_cast<T>(mask_size);
  if (!(axis.extent > 0 && axis.extent < std::numeric_limits<T>::infinity())) {
    return axis;
  }
  // Within one mask pixel of the box; clamped before the conversion.
  const T limit = static_cast<T>(image_size);
  const T reach = axis.extent / axis.mask_size + 1;
  axis.begin = static_cast<int64_t>(clamped(std::floor(first - reach), T(0), limit));
  axis.end = static_cast<int64_t>(clamped(std::ceil(last + reach), T(0), limit));
  axis.end = axis.end < image_size ? axis.end : image_size;
  return axis;
}

// Of a box with NaN or infinity both are empty.
template <typename T>
struct PasteAxes {
  PasteAxis<T> rows{}, columns{};

  SEGKERNELS_HOST_DEVICE PasteAxes(const PasteMasksParams& p, const T* box) {
    for (int d = 0; d < 4; ++d) {
      if (!(box[d] - box[d] == T(0))) {
        return;
      }
    }
    if (p.style == PasteStyle::kTorchvision) {
      const double scale = static_cast<double>(p.mask_w + 2) / static_cast<double>(p.mask_w);
      rows = torchvision_axis(box[1], box[3], scale, p.mask_h, p.image_h);
      columns = torchvision_axis(box[0], box[2], scale, p.mask_w, p.image_w);
    } else {
      rows = detectron2_axis(box[1], box[3], p.mask_h, p.image_h);
      columns = detectron2_axis(box[0], box[2], p.mask_w, p.image_w);
    }
  }
};

template <typename T>
SEGKERNELS_HOST_DEVICE T blend(T low, T high, T low_weight, T high_weight) {
  return product(low_weight, low) + product(high_weight, high);
}

}  // namespace segkernels
