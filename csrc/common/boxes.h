// Boxes (x1, y1, x2, y2): reading them, and intersection over union rounded as torchvision rounds it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "dispatch.h"
#include "host_device.h"
#include "simd.h"

namespace segkernels {

// float64 boxes stay, narrower ones become float32: coordinates are never computed in half precision.
inline ScalarType coordinate_type(const Tensor& boxes) {
  return compute_type(boxes.scalar_type());
}

inline Tensor to_coordinates(const Tensor& boxes, ScalarType dtype) {
  const Tensor dense = to_dense(boxes, false);
  return dense.scalar_type() == dtype ? dense : torch::stable::to(dense, dtype);
}

inline void check_boxes(const Tensor& boxes, const char* op, const char* argument) {
  STD_TORCH_CHECK(boxes.dim() >= 2 && boxes.size(boxes.dim() - 1) == 4, op, ": expected ", argument,
                  " of shape [N, 4], got ", shape_string(boxes));
}

// Never fused with a sum, which would round overlaps and corners otherwise than torchvision does. C++ sources switch
// contraction off as a whole.
template <typename T>
SEGKERNELS_HOST_DEVICE T product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 8) {
    return __dmul_rn(a, b);
  } else {
    return __fmul_rn(a, b);
  }
#else
  return a * b;
#endif
}

template <typename T>
struct Box {
  T x1, y1, x2, y2, area;

  Box() = default;
  SEGKERNELS_HOST_DEVICE Box(T left, T top, T right, T bottom, T area_)
      : x1(left), y1(top), x2(right), y2(bottom), area(area_) {}
  SEGKERNELS_HOST_DEVICE explicit Box(const T* corners)
      : Box(corners[0], corners[1], corners[2], corners[3], product(corners[2] - corners[0], corners[3] - corners[1])) {
  }
};

// NaN where a coordinate is: comparisons pass it on, as torch.min and torch.max do.
template <typename T>
SEGKERNELS_HOST_DEVICE T intersection_over_union(const Box<T>& a, const Box<T>& b) {
  const T left = b.x1 < a.x1 ? a.x1 : b.x1;
  const T top = b.y1 < a.y1 ? a.y1 : b.y1;
  const T right = a.x2 < b.x2 ? a.x2 : b.x2;
  const T bottom = a.y2 < b.y2 ? a.y2 : b.y2;
  const T width = right - left < T(0) ? T(0) : right - left;
  const T height = bottom - top < T(0) ? T(0) : bottom - top;
  const T intersection = product(width, height);
  return intersection / (a.area + b.area - intersection);
}

// Coordinate by coordinate, for vector loads.
template <typename T>
struct BoxColumns {
  std::vector<T> x1, y1, x2, y2, area;

  // Unset boxes are NaN: they overlap nothing.
  explicit BoxColumns(int64_t count) {
    for (auto* column : {&x1, &y1, &x2, &y2, &area}) {
      column->assign(count, std::numeric_limits<T>::quiet_NaN());
    }
  }
  Box<T> at(int64_t i) const {
    return {x1[i], y1[i], x2[i], y2[i], area[i]};
  }
  void set(int64_t i, const Box<T>& box) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
    area[i] = box.area;
  }
};

}  // namespace segkernels
