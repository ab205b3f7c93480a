// Shapes of box_iou and its gradient: maths that the CPU and the CUDA kernels share.
#pragma once

#include <cstdint>
#include <vector>

#include "boxes.h"

namespace segkernels {

struct BoxIouParams {
  int64_t batch, rows, columns;
};

inline BoxIouParams box_iou_params(const Tensor& boxes1, const Tensor& boxes2, const char* op) {
  check_boxes(boxes1, op, "boxes1");
  check_boxes(boxes2, op, "boxes2");
  const int64_t dim = boxes1.dim();
  bool same = boxes2.dim() == dim;
  int64_t batch = 1;
  for (int64_t d = 0; same && d < dim - 2; ++d) {
    same = boxes1.size(d) == boxes2.size(d);
    batch *= boxes1.size(d);
  }
  STD_TORCH_CHECK(same, op, ": expected boxes1 and boxes2 to agree in leading dimensions, got ", shape_string(boxes1),
                  " and ", shape_string(boxes2));
  check_same_dtype(boxes1, boxes2, op, "boxes1", "boxes2");
  return {batch, boxes1.size(dim - 2), boxes2.size(dim - 2)};
}

inline void check_pairs(const Tensor& grad_output, const Tensor& boxes1, const BoxIouParams& p, const char* op) {
  const int64_t dim = grad_output.dim();
  STD_TORCH_CHECK(dim == boxes1.dim() && grad_output.size(dim - 2) == p.rows &&
                      grad_output.size(dim - 1) == p.columns && grad_output.numel() == p.batch * p.rows * p.columns,
                  op, ": expected grad_output of shape [..., ", p.rows, ", ", p.columns, "], got ",
                  shape_string(grad_output));
}

inline Tensor empty_pairs(const Tensor& boxes1, const BoxIouParams& p, ScalarType dtype) {
  std::vector<int64_t> size;
  for (int64_t d = 0; d < boxes1.dim() - 1; ++d) {
    size.push_back(boxes1.size(d));
  }
  size.push_back(p.columns);
  return torch::stable::empty(size, dtype, std::nullopt, boxes1.device());  // [..., N, M]
}

// Share of the derivative of max(a, b) that goes to a: half each where they are equal, as in torch.
template <typename T>
SEGKERNELS_HOST_DEVICE double share(T a, T b) {
  return a > b ? 1.0 : (a == b ? 0.5 : 0.0);
}

// Adds what one pair contributes to the gradient of `own`.
template <typename T>
SEGKERNELS_HOST_DEVICE void add_gradient(const T* own, const T* other, double grad, double* sums) {
  const double own_width = own[2] - own[0], own_height = own[3] - own[1];
  const double other_area = static_cast<double>(other[2] - other[0]) * static_cast<double>(other[3] - other[1]);
  const double raw_width = (own[2] < other[2] ? own[2] : other[2]) - (own[0] > other[0] ? own[0] : other[0]);
  const double raw_height = (own[3] < other[3] ? own[3] : other[3]) - (own[1] > other[1] ? own[1] : other[1]);
  const double width = raw_width < 0 ? 0 : raw_width;
  const double height = raw_height < 0 ? 0 : raw_height;
  const double intersection = width * height;
  const double total = own_width * own_height + other_area - intersection;
  const double to_intersection = grad * (total + intersection) / (total * total);
  const double to_area = -grad * intersection / (total * total);
  const double to_width = raw_width < 0 ? 0 : to_intersection * height;
  const double to_height = raw_height < 0 ? 0 : to_intersection * width;
  sums[0] -= to_width * share(own[0], other[0]) + to_area * own_height;
  sums[1] -= to_height * share(own[1], other[1]) + to_area * own_width;
  sums[2] += to_width * share(other[2], own[2]) + to_area * own_height;
  sums[3] += to_height * share(other[3], own[3]) + to_area * own_width;
}

}  // namespace segkernels
