// Intersection over union of all pairs of boxes on the GPU. Forward a thread keeps a column's box and goes down the
// rows, which all threads of a block read at once; the division and the writes of the result should cost alike.
// Backward the sums of a box run in a fixed order: no atomics.
#include "../common/box_iou.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/cuda.cuh"

namespace segkernels {
namespace {

constexpr int kRows = 16;  // of a block

template <typename T>
__global__ void box_iou_fwd_kernel(const T* boxes1,  // [B, N, 4]
                                   const T* boxes2,  // [B, M, 4]
                                   T* output,        // [B, N, M]
                                   BoxIouParams p) {
  const int64_t row_tiles = (p.rows + kRows - 1) / kRows, column_tiles = (p.columns + kThreads - 1) / kThreads;
  for (int64_t work = blockIdx.x; work < p.batch * row_tiles * column_tiles; work += gridDim.x) {
    const int64_t rest = work / column_tiles;
    const int64_t column = (work - rest * column_tiles) * kThreads + threadIdx.x;
    const int64_t image = rest / row_tiles;
    const int64_t first = (rest - image * row_tiles) * kRows;
    if (column >= p.columns) {
      continue;
    }
    const Box<T> other(boxes2 + 4 * (image * p.columns + column));
    const int64_t last = min(first + kRows, p.rows);
    for (int64_t row = image * p.rows + first; row < image * p.rows + last; ++row) {
      output[row * p.columns + column] = intersection_over_union(Box<T>(boxes1 + 4 * row), other);
    }
  }
}

// One of a block's boxes has `kShares` threads: they take every kShares-th of the others, and are summed in a tree.
template <typename T, int kShares>
__device__ __forceinline__ void sum_shares(double (&sums)[4], double (&partial)[4][kThreads], int own, int share,
                                           bool valid, T* output) {
  constexpr int kBoxes = kThreads / kShares;
  for (int d = 0; d < 4; ++d) {
    partial[d][share * kBoxes + own] = sums[d];
  }
  for (int half = kShares / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int d = 0; d < 4 && share < half; ++d) {
      partial[d][share * kBoxes + own] += partial[d][(share + half) * kBoxes + own];
    }
  }
  for (int d = 0; d < 4 && share == 0 && valid; ++d) {
    output[d] = static_cast<T>(partial[d][own]);
  }
  __syncthreads();
}

// The gradient of `own` boxes, kThreads / kShares of them a block, which meet `others`; a pair's gradient lies at own
// number * own_step + other number * other_step. Neighbouring threads read neighbouring gradients in either direction.
template <typename T, int kShares>
__global__ void __launch_bounds__(kThreads, 1)
    box_iou_bwd_kernel(const T* grad_output,  // [B, N, M]
                       const T* own_boxes,    // [B, own_count, 4]
                       const T* other_boxes,  // [B, other_count, 4]
                       T* output,             // [B, own_count, 4]
                       int64_t batch, int64_t own_count, int64_t other_count, int64_t own_step, int64_t other_step) {
  __shared__ double partial[4][kThreads];
  constexpr int kBoxes = kThreads / kShares;
  const int64_t tiles = (own_count + kBoxes - 1) / kBoxes;
  const int own = threadIdx.x % kBoxes, share = threadIdx.x / kBoxes;
  for (int64_t work = blockIdx.x; work < batch * tiles; work += gridDim.x) {
    const int64_t image = work / tiles;
    const int64_t number = (work - image * tiles) * kBoxes + own;
    const bool valid = number < own_count;
    const int64_t place = 4 * (image * own_count + number);
    double sums[4] = {};
    if (valid) {
      const T* const grad = grad_output + image * own_count * other_count + number * own_step;
      T box[4];
      for (int d = 0; d < 4; ++d) {
        box[d] = own_boxes[place + d];
      }
      for (int64_t k = share; k < other_count; k += kShares) {
        add_gradient(box, other_boxes + 4 * (image * other_count + k), static_cast<double>(grad[k * other_step]), sums);
      }
    }
    sum_shares<T, kShares>(sums, partial, own, share, valid, output + place);
  }
}

Tensor box_iou_cuda(const Tensor& boxes1,    // [..., N, 4]
                    const Tensor& boxes2) {  // [..., M, 4]
  const BoxIouParams p = box_iou_params(boxes1, boxes2, "box_iou");
  const ScalarType dtype = coordinate_type(boxes1);
  const Tensor first = to_coordinates(boxes1, dtype), second = to_coordinates(boxes2, dtype);
  Tensor output = empty_pairs(boxes1, p, dtype);
  if (output.numel() == 0) {
    return output;
  }
  const DeviceScope scope(boxes1);
  const int64_t blocks = p.batch * ((p.rows + kRows - 1) / kRows) * ((p.columns + kThreads - 1) / kThreads);
  dispatch_compute(dtype, [&]<typename T>() {
    launch(box_iou_fwd_kernel<T>, blocks_for(blocks, 1), kThreads, 0, scope.stream(),
           static_cast<const T*>(first.const_data_ptr()), static_cast<const T*>(second.const_data_ptr()),
           static_cast<T*>(output.mutable_data_ptr()), p);
  });
  return output;
}

std::tuple<Tensor, Tensor> box_iou_backward_cuda(const Tensor& grad_output,  // [..., N, M]
                                                 const Tensor& boxes1,       // [..., N, 4]
                                                 const Tensor& boxes2) {     // [..., M, 4]
  const BoxIouParams p = box_iou_params(boxes1, boxes2, "box_iou_backward");
  check_pairs(grad_output, boxes1, p, "box_iou_backward");
  const ScalarType dtype = coordinate_type(boxes1);
  const Tensor first = to_coordinates(boxes1, dtype), second = to_coordinates(boxes2, dtype);
  const Tensor grad = to_coordinates(grad_output, dtype);
  Tensor grad1 = torch::stable::empty_like(first);   // [..., N, 4]
  Tensor grad2 = torch::stable::empty_like(second);  // [..., M, 4]
  const DeviceScope scope(boxes1);
  dispatch_compute(dtype, [&]<typename T>() {
    const T* const slopes = static_cast<const T*>(grad.const_data_ptr());
    const T* const a = static_cast<const T*>(first.const_data_ptr());
    const T* const b = static_cast<const T*>(second.const_data_ptr());
    constexpr int kColumns = 32;  // of a block, so that a warp reads a row of theirs
    const int64_t column_blocks = p.batch * ((p.columns + kColumns - 1) / kColumns);
    if (p.batch * p.rows > 0) {
      launch(box_iou_bwd_kernel<T, kThreads>, blocks_for(p.batch * p.rows, 1), kThreads, 0, scope.stream(), slopes, a,
             b, static_cast<T*>(grad1.mutable_data_ptr()), p.batch, p.rows, p.columns, p.columns, int64_t{1});
    }
    if (column_blocks > 0) {
      launch(box_iou_bwd_kernel<T, kThreads / kColumns>, blocks_for(column_blocks, 1), kThreads, 0, scope.stream(),
             slopes, b, a, static_cast<T*>(grad2.mutable_data_ptr()), p.batch, p.columns, p.rows, int64_t{1},
             p.columns);
    }
  });
  if (boxes1.scalar_type() != dtype) {
    return {torch::stable::to(grad1, boxes1.scalar_type()), torch::stable::to(grad2, boxes2.scalar_type())};
  }
  return {grad1, grad2};
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("box_iou", TORCH_BOX(&box_iou_cuda));
  m.impl("box_iou_backward", TORCH_BOX(&box_iou_backward_cuda));
}

}  // namespace segkernels
