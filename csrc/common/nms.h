// What non-maximum suppression asks of its arguments, on every tier.
#pragma once

#include <cmath>
#include <limits>

#include "boxes.h"

namespace segkernels {

inline void check_scored_boxes(const Tensor& boxes, const Tensor& scores, const char* op) {
  check_dim(boxes, 2, op, "boxes");
  check_boxes(boxes, op, "boxes");
  check_dim(scores, 1, op, "scores");
  STD_TORCH_CHECK(scores.size(0) == boxes.size(0), op, ": expected one score a box, got ", scores.size(0), " for ",
                  boxes.size(0));
}

inline void check_classes(const Tensor& scores, const Tensor& idxs, const char* op) {
  check_same_shape(scores, idxs, op, "scores", "idxs");
  STD_TORCH_CHECK(idxs.scalar_type() == ScalarType::Long, op, ": expected int64 idxs, got ", idxs.scalar_type());
}

// The largest T not above the threshold: comparing with it is comparing with the threshold in float64.
template <typename T>
T threshold_below(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
                                                  : rounded;
}

}  // namespace segkernels
