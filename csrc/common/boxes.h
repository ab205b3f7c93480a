// Boxes (x1, y1, x2, y2): reading them, and intersection over union rounded as torchvision rounds it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "dispatch.h"
#include "simd.h"

namespace segkernels {

// float64 boxes stay, narrower ones become float32: coordinates are never computed in half precision.
inline ScalarType coordinate_type(const Tensor& boxes) {
  return boxes.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor to_coordinates(const Tensor& boxes, ScalarType dtype) {
  const Tensor dense = to_dense(boxes, false);
  return dense.scalar_type() == dtype ? dense : torch::stable::to(dense, dtype);
}

inline void check_boxes(const Tensor& boxes, const char* op, const char* argument) {
  STD_TORCH_CHECK(boxes.dim() >= 2 && boxes.size(boxes.dim() - 1) == 4, op, ": expected ", argument,
                  " of shape [N, 4], got ", shape_string(boxes));
}

template <typename F>
void dispatch_coordinates(ScalarType dtype, F&& f) {
  dtype == ScalarType::Double ? f.template operator()<double>() : f.template operator()<float>();
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
  void set(int64_t i, const T* box) {
    x1[i] = box[0];
    y1[i] = box[1];
    x2[i] = box[2];
    y2[i] = box[3];
    area[i] = (box[2] - box[0]) * (box[3] - box[1]);
  }
  void move(int64_t to, const BoxColumns& other, int64_t from) {
    x1[to] = other.x1[from];
    y1[to] = other.y1[from];
    x2[to] = other.x2[from];
    y2[to] = other.y2[from];
    area[to] = other.area[from];
  }
};

}  // namespace segkernels
