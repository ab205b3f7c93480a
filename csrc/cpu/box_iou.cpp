// Intersection over union of all pairs of boxes. The forward rounds as torchvision does: no fused multiply-adds.
#pragma GCC optimize("fp-contract=off")

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/box_iou.h"
#include "../common/parallel.h"

namespace segkernels {
namespace {

template <typename T>
SEGKERNELS_CLONES void iou_row(const T* corners, const BoxColumns<T>& others, int64_t first, int64_t count, T* output) {
  const Box<T> box(corners);
  const T* x1 = others.x1.data() + first;
  const T* y1 = others.y1.data() + first;
  const T* x2 = others.x2.data() + first;
  const T* y2 = others.y2.data() + first;
  const T* area = others.area.data() + first;
  for (int64_t k = 0; k < count; ++k) {
    output[k] = intersection_over_union(box, Box<T>(x1[k], y1[k], x2[k], y2[k], area[k]));
  }
}

Tensor box_iou_cpu(const Tensor& boxes1,    // [..., N, 4]
                   const Tensor& boxes2) {  // [..., M, 4]
  const BoxIouParams p = box_iou_params(boxes1, boxes2, "box_iou");
  const Tensor first = to_coordinates(boxes1, coordinate_type(boxes1));
  const Tensor second = to_coordinates(boxes2, coordinate_type(boxes2));
  Tensor output = empty_pairs(boxes1, p, first.scalar_type());  // [..., N, M]
  dispatch_compute(first.scalar_type(), [&]<typename T>() {
    const T* rows = static_cast<const T*>(first.const_data_ptr());
    const T* columns = static_cast<const T*>(second.const_data_ptr());
    T* out = static_cast<T*>(output.mutable_data_ptr());
    BoxColumns<T> others(p.batch * p.columns);
    for (int64_t i = 0; i < p.batch * p.columns; ++i) {
      others.set(i, Box<T>(columns + 4 * i));
    }
    parallel_items(p.batch * p.rows, p.columns, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        iou_row(rows + 4 * row, others, row / p.rows * p.columns, p.columns, out + row * p.columns);
      }
    });
  });
  return output;
}

// The gradient of one argument: `own` boxes meet `others`, whose gradients lie at row * row_step + column * step.
template <typename T>
void write_gradient(const T* own, int64_t own_count, const T* others, int64_t other_count, const T* grad,
                    int64_t row_step, int64_t step, int64_t batch, T* output) {
  parallel_items(batch * own_count, 16 * other_count, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / own_count;
      const T* slope = grad + image * own_count * other_count + (row - image * own_count) * row_step;
      double sums[4] = {};
      for (int64_t k = 0; k < other_count; ++k) {
        add_gradient(own + 4 * row, others + 4 * (image * other_count + k), static_cast<double>(slope[k * step]), sums);
      }
      for (int64_t d = 0; d < 4; ++d) {
        output[4 * row + d] = static_cast<T>(sums[d]);
      }
    }
  });
}

std::tuple<Tensor, Tensor> box_iou_backward_cpu(const Tensor& grad_output,  // [..., N, M]
                                                const Tensor& boxes1,       // [..., N, 4]
                                                const Tensor& boxes2) {     // [..., M, 4]
  const BoxIouParams p = box_iou_params(boxes1, boxes2, "box_iou_backward");
  check_pairs(grad_output, boxes1, p, "box_iou_backward");
  const ScalarType dtype = coordinate_type(boxes1);
  const Tensor first = to_coordinates(boxes1, dtype);
  const Tensor second = to_coordinates(boxes2, dtype);
  const Tensor slopes = to_coordinates(grad_output, dtype);
  Tensor grad1 = torch::stable::empty_like(first);   // [..., N, 4]
  Tensor grad2 = torch::stable::empty_like(second);  // [..., M, 4]
  dispatch_compute(dtype, [&]<typename T>() {
    const T* a = static_cast<const T*>(first.const_data_ptr());
    const T* b = static_cast<const T*>(second.const_data_ptr());
    const T* grad = static_cast<const T*>(slopes.const_data_ptr());
    write_gradient(a, p.rows, b, p.columns, grad, p.columns, 1, p.batch, static_cast<T*>(grad1.mutable_data_ptr()));
    write_gradient(b, p.columns, a, p.rows, grad, 1, p.columns, p.batch, static_cast<T*>(grad2.mutable_data_ptr()));
  });
  if (boxes1.scalar_type() != dtype) {
    return {torch::stable::to(grad1, boxes1.scalar_type()), torch::stable::to(grad2, boxes2.scalar_type())};
  }
  return {grad1, grad2};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("box_iou", TORCH_BOX(&box_iou_cpu));
  m.impl("box_iou_backward", TORCH_BOX(&box_iou_backward_cpu));
}

}  // namespace segkernels
