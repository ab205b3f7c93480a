// Intersection over union of all pairs of boxes. The forward rounds as torchvision does: no fused multiply-adds.
#pragma GCC optimize("fp-contract=off")

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/boxes.h"
#include "../common/parallel.h"

namespace segkernels {
namespace {

struct BoxIouParams {
  int64_t batch, rows, columns;
};

BoxIouParams box_iou_params(const Tensor& boxes1, const Tensor& boxes2, const char* op) {
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

// Comparisons pass NaN on, as torch.min and torch.max do.
template <typename T>
SEGKERNELS_CLONES void iou_row(const T* box, const BoxColumns<T>& others, int64_t first, int64_t count, T* output) {
  const T x1 = box[0], y1 = box[1], x2 = box[2], y2 = box[3];
  const T area = (x2 - x1) * (y2 - y1);
  const T* ox1 = others.x1.data() + first;
  const T* oy1 = others.y1.data() + first;
  const T* ox2 = others.x2.data() + first;
  const T* oy2 = others.y2.data() + first;
  const T* oarea = others.area.data() + first;
  for (int64_t k = 0; k < count; ++k) {
    const T left = ox1[k] < x1 ? x1 : ox1[k];
    const T top = oy1[k] < y1 ? y1 : oy1[k];
    const T right = x2 < ox2[k] ? x2 : ox2[k];
    const T bottom = y2 < oy2[k] ? y2 : oy2[k];
    const T width = right - left < T(0) ? T(0) : right - left;
    const T height = bottom - top < T(0) ? T(0) : bottom - top;
    const T intersection = width * height;
    output[k] = intersection / (area + oarea[k] - intersection);
  }
}

Tensor box_iou_cpu(const Tensor& boxes1,    // [..., N, 4]
                   const Tensor& boxes2) {  // [..., M, 4]
  const BoxIouParams p = box_iou_params(boxes1, boxes2, "box_iou");
  const Tensor first = to_coordinates(boxes1, coordinate_type(boxes1));
  const Tensor second = to_coordinates(boxes2, coordinate_type(boxes2));
  std::vector<int64_t> size;
  for (int64_t d = 0; d < boxes1.dim() - 1; ++d) {
    size.push_back(boxes1.size(d));
  }
  size.push_back(p.columns);
  Tensor output = torch::stable::empty(size, first.scalar_type(), std::nullopt, boxes1.device());  // [..., N, M]
  dispatch_coordinates(first.scalar_type(), [&]<typename T>() {
    const T* rows = static_cast<const T*>(first.const_data_ptr());
    const T* columns = static_cast<const T*>(second.const_data_ptr());
    T* out = static_cast<T*>(output.mutable_data_ptr());
    BoxColumns<T> others(p.batch * p.columns);
    for (int64_t i = 0; i < p.batch * p.columns; ++i) {
      others.set(i, columns + 4 * i);
    }
    parallel_items(p.batch * p.rows, p.columns, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        iou_row(rows + 4 * row, others, row / p.rows * p.columns, p.columns, out + row * p.columns);
      }
    });
  });
  return output;
}

// Share of the derivative of max(a, b) that goes to a: half each where they are equal, as in torch.
template <typename T>
double share(T a, T b) {
  return a > b ? 1.0 : (a == b ? 0.5 : 0.0);
}

// Adds what one pair contributes to the gradient of `own`.
template <typename T>
void add_gradient(const T* own, const T* other, double grad, double* sums) {
  const double own_width = own[2] - own[0], own_height = own[3] - own[1];
  const double other_area = static_cast<double>(other[2] - other[0]) * static_cast<double>(other[3] - other[1]);
  const double raw_width = std::min(own[2], other[2]) - std::max(own[0], other[0]);
  const double raw_height = std::min(own[3], other[3]) - std::max(own[1], other[1]);
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
  const int64_t dim = grad_output.dim();
  STD_TORCH_CHECK(dim == boxes1.dim() && grad_output.size(dim - 2) == p.rows &&
                      grad_output.size(dim - 1) == p.columns && grad_output.numel() == p.batch * p.rows * p.columns,
                  "box_iou_backward: expected grad_output of shape [..., ", p.rows, ", ", p.columns, "], got ",
                  shape_string(grad_output));
  const ScalarType dtype = coordinate_type(boxes1);
  const Tensor first = to_coordinates(boxes1, dtype);
  const Tensor second = to_coordinates(boxes2, dtype);
  const Tensor slopes = to_coordinates(grad_output, dtype);
  Tensor grad1 = torch::stable::empty_like(first);   // [..., N, 4]
  Tensor grad2 = torch::stable::empty_like(second);  // [..., M, 4]
  dispatch_coordinates(dtype, [&]<typename T>() {
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
