// Max-pooling on the GPU: each output looks at its window, and backward each input element gathers from the windows
// that it lies in, in a fixed order. No atomics, bit-equal between runs.
#include "../common/max_pool2d.h"

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "../common/check.h"
#include "../common/cuda.cuh"
#include "../common/dispatch.h"

namespace segkernels {
namespace {

// The kind of index is uniform over a launch, so it is a value and not an instantiation.
__device__ __forceinline__ void store_index(void* indices, int64_t index_bits, int64_t entry, int64_t offset,
                                            int64_t position) {
  if (index_bits == 8) {
    static_cast<uint8_t*>(indices)[entry] = static_cast<uint8_t>(offset);
  } else if (index_bits == 64) {
    static_cast<int64_t*>(indices)[entry] = position;
  }
}

template <typename scalar_t>
__global__ void max_pool2d_fwd_kernel(MaxPool2dParams p, int64_t rows,
                                      const scalar_t* input,  // [N, C, H, W]
                                      scalar_t* output,       // [N, C, h, w]
                                      void* indices,          // [N, C, h, w] or none
                                      int64_t index_bits) {
  using T = accumulate_t<scalar_t>;
  const int64_t channels = p.channels_last ? p.channels : 1;
  const int64_t row_elements = p.out_w * channels;
  for (int64_t row = blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y; row < rows;
       row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const int64_t plane = row / p.out_h;
    const int64_t y = row - plane * p.out_h;
    const scalar_t* in = input + plane * p.in_h * p.in_w * channels;
    const int64_t top = y * p.stride_h - p.pad_h;
    for (int64_t i = threadIdx.x; i < row_elements; i += blockDim.x) {
      const int64_t x = p.channels_last ? i / channels : i;
      const int64_t c = i - x * channels;
      const int64_t left = x * p.stride_w - p.pad_w;
      scalar_t best = static_cast<scalar_t>(-INFINITY);
      T bar = -INFINITY;
      int64_t offset = -1;
      int64_t position = -1;
      for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
        const int64_t r = top + kh * p.dilation_h;
        if (r < 0 || r >= p.in_h) {
          continue;
        }
        for (int64_t kw = 0; kw < p.kernel_w; ++kw) {
          const int64_t col = left + kw * p.dilation_w;
          if (col < 0 || col >= p.in_w) {
            continue;
          }
          const int64_t place = r * p.in_w + col;
          const scalar_t value = in[place * channels + c];
          const T key = static_cast<T>(value);
          // The first maximum stays, and the last NaN is kept.
          if (offset < 0 || key > bar || isnan(key)) {
            best = value;
            bar = key;
            offset = kh * p.kernel_w + kw;
            position = place;
          }
        }
      }
      const int64_t entry = row * row_elements + i;
      output[entry] = best;
      store_index(indices, index_bits, entry, offset < 0 ? 0 : offset, position);
    }
  }
}

template <typename scalar_t>
__global__ void max_pool2d_bwd_kernel(MaxPool2dParams p, int64_t rows,
                                      const scalar_t* grad_output,  // [N, C, h, w]
                                      const void* indices,          // [N, C, h, w]
                                      scalar_t* grad_input,         // [N, C, H, W]
                                      int64_t index_bits) {
  using T = accumulate_t<scalar_t>;
  const int64_t channels = p.channels_last ? p.channels : 1;
  const int64_t row_elements = p.in_w * channels;
  const int64_t extent_h = (p.kernel_h - 1) * p.dilation_h;
  const int64_t extent_w = (p.kernel_w - 1) * p.dilation_w;
  for (int64_t row = blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y; row < rows;
       row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const int64_t plane = row / p.in_h;
    const int64_t r = row - plane * p.in_h;
    const int64_t first_entry = plane * p.out_h * p.out_w * channels;
    // Windows [first, last] reach this row.
    const int64_t above = r + p.pad_h - extent_h;
    const int64_t first_y = above > 0 ? (above + p.stride_h - 1) / p.stride_h : 0;
    const int64_t last_y = min(p.out_h - 1, (r + p.pad_h) / p.stride_h);
    for (int64_t i = threadIdx.x; i < row_elements; i += blockDim.x) {
      const int64_t col = p.channels_last ? i / channels : i;
      const int64_t c = i - col * channels;
      const int64_t before = col + p.pad_w - extent_w;
      const int64_t first_x = before > 0 ? (before + p.stride_w - 1) / p.stride_w : 0;
      const int64_t last_x = min(p.out_w - 1, (col + p.pad_w) / p.stride_w);
      T sum = 0;
      for (int64_t y = first_y; y <= last_y; ++y) {
        for (int64_t x = first_x; x <= last_x; ++x) {
          const int64_t entry = first_entry + (y * p.out_w + x) * channels + c;
          bool match;
          if (index_bits == 64) {
            match = static_cast<const int64_t*>(indices)[entry] == r * p.in_w + col;
          } else {
            const int64_t dy = r + p.pad_h - y * p.stride_h;
            const int64_t dx = col + p.pad_w - x * p.stride_w;
            const int64_t kh = dy / p.dilation_h;
            const int64_t kw = dx / p.dilation_w;
            match = static_cast<const uint8_t*>(indices)[entry] == kh * p.kernel_w + kw && kh * p.dilation_h == dy &&
                    kw * p.dilation_w == dx;
          }
          if (match) {
            sum += static_cast<T>(grad_output[entry]);
          }
        }
      }
      grad_input[row * row_elements + i] = static_cast<scalar_t>(sum);
    }
  }
}

std::tuple<Tensor, Tensor> max_pool2d_cuda(const Tensor& input,  // [N, C, H, W]
                                           IntList kernel_size, IntList stride, IntList padding, IntList dilation,
                                           bool ceil_mode, int64_t index_bits) {
  const MaxPool2dParams p =
      max_pool2d_params(input, kernel_size, stride, padding, dilation, ceil_mode, index_bits, "max_pool2d");
  const Tensor values = to_dense(input, p.channels_last);
  const ScalarType index_type = index_bits == 64 ? ScalarType::Long : ScalarType::Byte;
  Tensor output = empty_nchw(p.batch, p.channels, p.out_h, p.out_w, input.scalar_type(), input, p.channels_last);
  Tensor indices = index_bits == 0
                       ? empty({0}, index_type, input)
                       : empty_nchw(p.batch, p.channels, p.out_h, p.out_w, index_type, input, p.channels_last);
  if (output.numel() == 0) {
    return {output, indices};
  }
  const DeviceScope scope(input);
  const RowWalk walk((p.channels_last ? p.batch : p.planes()) * p.out_h, p.out_w * (p.channels_last ? p.channels : 1));
  dispatch_floating(input.scalar_type(), "max_pool2d", [&]<typename scalar_t>() {
    launch(max_pool2d_fwd_kernel<scalar_t>, walk.grid, walk.block, 0, scope.stream(), p, walk.rows,
           static_cast<const scalar_t*>(values.const_data_ptr()), static_cast<scalar_t*>(output.mutable_data_ptr()),
           indices.mutable_data_ptr(), index_bits);
  });
  return {output, indices};
}

Tensor max_pool2d_backward_cuda(const Tensor& grad_output,  // [N, C, h, w]
                                const Tensor& indices,      // [N, C, h, w]
                                IntList input_size, IntList kernel_size, IntList stride, IntList padding,
                                IntList dilation) {
  const MaxPool2dParams p = max_pool2d_backward_params(grad_output, indices, input_size, kernel_size, stride, padding,
                                                       dilation, "max_pool2d_backward");
  const Tensor grad = to_dense(grad_output, p.channels_last);
  const Tensor places = to_dense(indices, p.channels_last);
  Tensor grad_input = empty_nchw(p.batch, p.channels, p.in_h, p.in_w, grad.scalar_type(), grad, p.channels_last);
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  const DeviceScope scope(grad);
  const RowWalk walk((p.channels_last ? p.batch : p.planes()) * p.in_h, p.in_w * (p.channels_last ? p.channels : 1));
  dispatch_floating(grad.scalar_type(), "max_pool2d_backward", [&]<typename scalar_t>() {
    dispatch_index(indices.scalar_type(), "max_pool2d_backward", [&]<typename index_t>() {
      launch(max_pool2d_bwd_kernel<scalar_t>, walk.grid, walk.block, 0, scope.stream(), p, walk.rows,
             static_cast<const scalar_t*>(grad.const_data_ptr()), places.const_data_ptr(),
             static_cast<scalar_t*>(grad_input.mutable_data_ptr()), 8 * static_cast<int64_t>(sizeof(index_t)));
    });
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d_cuda));
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward_cuda));
}

}  // namespace segkernels
