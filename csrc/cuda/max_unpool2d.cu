// Max-unpooling on the GPU: no float atomics, no fill, bit-equal between runs.
//
// Where windows are disjoint, an output element is written by the thread that owns it: it looks at its one window's
// index and takes the value or zero. Indices that leave their own window (only int64 ones can) raise a flag in device
// memory, and a second kernel, which otherwise returns at once, redoes the planes with integer atomics: the largest
// entry wins, that is the last in raster order. Overlapping windows go straight to that kernel.
#include "../common/cuda.cuh"
#include "../common/max_unpool2d.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"

namespace segkernels {
namespace {

// Offset of element `place` of a plane's channel in memory, either layout.
__device__ __forceinline__ int64_t element_offset(const MaxUnpool2dParams& p, int64_t plane, int64_t plane_size,
                                                  int64_t place) {
  if (!p.channels_last) {
    return plane * plane_size + place;
  }
  const int64_t n = plane / p.channels;
  return (n * plane_size + place) * p.channels + (plane - n * p.channels);
}

// Splits a memory offset of a [N, C, h, w] tensor into plane and place.
__device__ __forceinline__ void split_offset(const MaxUnpool2dParams& p, int64_t offset, int64_t plane_size,
                                             int64_t& plane, int64_t& place) {
  if (!p.channels_last) {
    plane = offset / plane_size;
    place = offset - plane * plane_size;
  } else {
    const int64_t pixel = offset / p.channels;
    const int64_t n = pixel / plane_size;
    plane = n * p.channels + (offset - pixel * p.channels);
    place = pixel - n * plane_size;
  }
}

// One thread per output element; disjoint windows.
template <typename T, typename index_t>
__global__ void max_unpool2d_fwd_kernel(MaxUnpool2dParams p,
                                        const T* input,          // [N, C, h, w]
                                        const index_t* indices,  // [N, C, h, w]
                                        T* output,               // [N, C, H, W]
                                        int* foreign) {
  const int64_t total = p.planes() * p.out_plane();
  for (int64_t offset = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; offset < total;
       offset += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    int64_t plane, place;
    split_offset(p, offset, p.out_plane(), plane, place);
    const int64_t row = place / p.out_w;
    const int64_t col = place - row * p.out_w;
    const int64_t y = (row + p.pad_h) / p.stride_h;
    const int64_t x = (col + p.pad_w) / p.stride_w;
    T value = T(0);
    if (y < p.in_h && x < p.in_w) {
      const int64_t entry = element_offset(p, plane, p.in_plane(), y * p.in_w + x);
      const int64_t position = unpool_position(p, indices[entry], y, x);
      if (position == place) {
        value = input[entry];
      }
    }
    output[offset] = value;
  }
  if constexpr (!std::is_same_v<index_t, uint8_t>) {
    const int64_t entries = p.planes() * p.in_plane();
    bool outside = false;
    for (int64_t entry = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; entry < entries;
         entry += static_cast<int64_t>(gridDim.x) * blockDim.x) {
      int64_t plane, place;
      split_offset(p, entry, p.in_plane(), plane, place);
      const int64_t y = place / p.in_w;
      const int64_t position = unpool_position(p, indices[entry], y, place - y * p.in_w);
      outside |= position >= 0 && !in_own_window(p, position, y, place - y * p.in_w);
    }
    if (outside) {
      atomicOr(foreign, 1);
    }
  }
}

// Marks in `winner` the last entry of each output element of one plane; a block's threads share it.
template <typename index_t>
__device__ void mark_winners(const MaxUnpool2dParams& p, int64_t plane, const index_t* indices, int* winner) {
  for (int64_t i = threadIdx.x; i < p.out_plane(); i += blockDim.x) {
    winner[i] = -1;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p.in_plane(); i += blockDim.x) {
    const int64_t y = i / p.in_w;
    const index_t index = indices[element_offset(p, plane, p.in_plane(), i)];
    const int64_t position = unpool_position(p, index, y, i - y * p.in_w);
    if (position >= 0) {
      atomicMax(&winner[position], static_cast<int>(i));
    }
  }
  __syncthreads();
}

// One block per plane, looping over planes; `winners` holds one output plane per block.
template <typename T, typename index_t>
__global__ void max_unpool2d_fwd_kernel_any(MaxUnpool2dParams p, const T* input, const index_t* indices, T* output,
                                            const int* foreign, int* winners) {
  if (foreign != nullptr && *foreign == 0) {
    return;
  }
  int* winner = winners + blockIdx.x * p.out_plane();
  for (int64_t plane = blockIdx.x; plane < p.planes(); plane += gridDim.x) {
    mark_winners(p, plane, indices, winner);
    for (int64_t i = threadIdx.x; i < p.out_plane(); i += blockDim.x) {
      const int entry = winner[i];
      output[element_offset(p, plane, p.out_plane(), i)] =
          entry < 0 ? T(0) : input[element_offset(p, plane, p.in_plane(), entry)];
    }
    __syncthreads();
  }
}

// One thread per entry; right while no two entries share a position.
template <typename T, typename index_t>
__global__ void max_unpool2d_bwd_kernel(MaxUnpool2dParams p,
                                        const T* grad_output,    // [N, C, H, W]
                                        const index_t* indices,  // [N, C, h, w]
                                        T* grad_input,           // [N, C, h, w]
                                        int* foreign) {
  const int64_t entries = p.planes() * p.in_plane();
  bool outside = false;
  for (int64_t entry = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; entry < entries;
       entry += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    int64_t plane, place;
    split_offset(p, entry, p.in_plane(), plane, place);
    const int64_t y = place / p.in_w;
    const int64_t x = place - y * p.in_w;
    const int64_t position = unpool_position(p, indices[entry], y, x);
    outside |= position >= 0 && !in_own_window(p, position, y, x);
    grad_input[entry] = position < 0 ? T(0) : grad_output[element_offset(p, plane, p.out_plane(), position)];
  }
  if (outside) {
    atomicOr(foreign, 1);
  }
}

template <typename T, typename index_t>
__global__ void max_unpool2d_bwd_kernel_any(MaxUnpool2dParams p, const T* grad_output, const index_t* indices,
                                            T* grad_input, const int* foreign, int* winners) {
  if (foreign != nullptr && *foreign == 0) {
    return;
  }
  int* winner = winners + blockIdx.x * p.out_plane();
  for (int64_t plane = blockIdx.x; plane < p.planes(); plane += gridDim.x) {
    mark_winners(p, plane, indices, winner);
    for (int64_t i = threadIdx.x; i < p.in_plane(); i += blockDim.x) {
      const int64_t entry = element_offset(p, plane, p.in_plane(), i);
      const int64_t y = i / p.in_w;
      const int64_t position = unpool_position(p, indices[entry], y, i - y * p.in_w);
      const bool won = position >= 0 && winner[position] == i;
      grad_input[entry] = won ? grad_output[element_offset(p, plane, p.out_plane(), position)] : T(0);
    }
    __syncthreads();
  }
}

// Runs `tiled` where windows are disjoint, and `any` where they are not or where `tiled` finds a foreign index.
template <typename index_t, typename Tiled, typename Any>
void run(const MaxUnpool2dParams& p, const Tensor& like, const char* op, Tiled&& tiled, Any&& any) {
  STD_TORCH_CHECK(p.out_plane() <= INT32_MAX && p.in_plane() <= INT32_MAX, op,
                  ": expected planes of at most 2^31-1 elements, got ", p.out_h, "x", p.out_w);
  const DeviceScope scope(like);
  const cudaStream_t stream = scope.stream();
  const bool disjoint = p.disjoint_windows();
  const bool always_own = disjoint && std::is_same_v<index_t, uint8_t>;
  const int64_t blocks = std::min<int64_t>(p.planes(), 2 * scope.multiprocessors());
  Tensor scratch = torch::stable::new_empty(like, {always_own ? int64_t{1} : 1 + blocks * p.out_plane()},
                                            ScalarType::Int);  // the flag, then one plane of winners per block
  int* foreign = static_cast<int*>(scratch.mutable_data_ptr());
  if (disjoint) {
    const cudaError_t error = cudaMemsetAsync(foreign, 0, sizeof(int), stream);
    STD_TORCH_CHECK(error == cudaSuccess, op, ": cudaMemsetAsync: ", cudaGetErrorString(error));
    tiled(stream, foreign);
  }
  if (!always_own) {
    any(static_cast<unsigned int>(blocks), stream, disjoint ? foreign : nullptr, foreign + 1);
  }
}

Tensor max_unpool2d_cuda(const Tensor& input,    // [N, C, h, w]
                         const Tensor& indices,  // [N, C, h, w]
                         IntList output_size, IntList kernel_size, IntList stride, IntList padding) {
  check_dim(input, 4, "max_unpool2d", "input");
  check_same_shape(input, indices, "max_unpool2d", "input", "indices");
  const bool channels_last = is_channels_last(input);
  const Tensor values = to_dense(input, channels_last);
  const Tensor places = to_dense(indices, channels_last);
  const MaxUnpool2dParams p =
      max_unpool2d_params(input, output_size[0], output_size[1], kernel_size, stride, padding, channels_last);
  Tensor output =
      empty_nchw(p.batch, p.channels, p.out_h, p.out_w, input.scalar_type(), input, channels_last);  // [N, C, H, W]
  if (output.numel() == 0) {
    return output;
  }
  dispatch_element(input, "max_unpool2d", [&]<typename T>() {
    dispatch_index(indices.scalar_type(), "max_unpool2d", [&]<typename index_t>() {
      const T* in = static_cast<const T*>(values.const_data_ptr());
      const index_t* index = static_cast<const index_t*>(places.const_data_ptr());
      T* out = static_cast<T*>(output.mutable_data_ptr());
      run<index_t>(
          p, output, "max_unpool2d",
          [&](cudaStream_t stream, int* foreign) {
            launch(max_unpool2d_fwd_kernel<T, index_t>, blocks_for(p.planes() * p.out_plane()), kThreads, 0, stream, p,
                   in, index, out, foreign);
          },
          [&](unsigned int blocks, cudaStream_t stream, const int* foreign, int* winners) {
            launch(max_unpool2d_fwd_kernel_any<T, index_t>, blocks, 1024, 0, stream, p, in, index, out, foreign,
                   winners);
          });
    });
  });
  return output;
}

Tensor max_unpool2d_backward_cuda(const Tensor& grad_output,  // [N, C, H, W]
                                  const Tensor& indices,      // [N, C, h, w]
                                  IntList kernel_size, IntList stride, IntList padding) {
  check_dim(grad_output, 4, "max_unpool2d_backward", "grad_output");
  check_dim(indices, 4, "max_unpool2d_backward", "indices");
  check_same_planes(grad_output, indices, "max_unpool2d_backward");
  const bool channels_last = is_channels_last(indices);
  const Tensor grad = to_dense(grad_output, channels_last);
  const Tensor places = to_dense(indices, channels_last);
  const MaxUnpool2dParams p =
      max_unpool2d_params(indices, grad.size(2), grad.size(3), kernel_size, stride, padding, channels_last);
  Tensor grad_input =
      empty_nchw(p.batch, p.channels, p.in_h, p.in_w, grad.scalar_type(), grad, channels_last);  // [N, C, h, w]
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  dispatch_element(grad, "max_unpool2d_backward", [&]<typename T>() {
    dispatch_index(indices.scalar_type(), "max_unpool2d_backward", [&]<typename index_t>() {
      const T* out_grad = static_cast<const T*>(grad.const_data_ptr());
      const index_t* index = static_cast<const index_t*>(places.const_data_ptr());
      T* in_grad = static_cast<T*>(grad_input.mutable_data_ptr());
      run<index_t>(
          p, grad_input, "max_unpool2d_backward",
          [&](cudaStream_t stream, int* foreign) {
            launch(max_unpool2d_bwd_kernel<T, index_t>, blocks_for(p.planes() * p.in_plane()), kThreads, 0, stream, p,
                   out_grad, index, in_grad, foreign);
          },
          [&](unsigned int blocks, cudaStream_t stream, const int* foreign, int* winners) {
            launch(max_unpool2d_bwd_kernel_any<T, index_t>, blocks, 1024, 0, stream, p, out_grad, index, in_grad,
                   foreign, winners);
          });
    });
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("max_unpool2d", TORCH_BOX(&max_unpool2d_cuda));
  m.impl("max_unpool2d_backward", TORCH_BOX(&max_unpool2d_backward_cuda));
}

}  // namespace segkernels
