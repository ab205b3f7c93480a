// Transposed convolution of every channel on its own (upsampling as a layer) on the GPU. Every result gathers what
// reaches it, so that nothing is added to memory twice: bound by memory, with ceil(kernel / stride)^2 reads per output
// from L1. The weight's gradient is summed in chunks of rows whose number depends on shapes only.
#pragma once

#include "conv_transpose2d_tiles.cuh"

namespace segkernels {
namespace {

// The first pixel of a row (NCHW: of a plane; channels_last: of an image) and how far apart its pixels are.
struct DepthwiseLayout {
  int64_t channels;  // that are neighbours in memory: 1 in NCHW

  __device__ __forceinline__ int64_t row(int64_t plane, int64_t y, int64_t height, int64_t width) const {
    return (plane * height + y) * width * channels;
  }
};

template <typename scalar_t>
__global__ void conv_transpose2d_depthwise_fwd_kernel(ConvTranspose2dParams p, int64_t rows, DepthwiseLayout layout,
                                                      const scalar_t* input,   // [N, C, H, W]
                                                      const scalar_t* weight,  // [C, 1, KH, KW]
                                                      const scalar_t* bias,    // [C] or none
                                                      scalar_t* output) {      // [N, C, OH, OW]
  using T = accumulate_t<scalar_t>;
  const int channels = static_cast<int>(layout.channels);
  const int row_elements = static_cast<int>(p.out_w) * channels;
  const int kernel_h = static_cast<int>(p.kernel_h), kernel_w = static_cast<int>(p.kernel_w);
  const int stride_h = static_cast<int>(p.stride_h), stride_w = static_cast<int>(p.stride_w);
  for (int64_t row = blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y; row < rows;
       row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const int64_t plane = row / p.out_h;
    const int from_y = static_cast<int>(row - plane * p.out_h + p.pad_h);
    const int first_y = from_y / stride_h;
    for (int i = threadIdx.x; i < row_elements; i += blockDim.x) {
      const int x = i / channels;
      const int64_t c = channels == 1 ? plane % p.in_channels : i - x * channels;
      const int from_x = x + static_cast<int>(p.pad_w);
      const int first_x = from_x / stride_w;
      const scalar_t* const taps = weight + c * kernel_h * kernel_w;
      T sum = 0;
      for (int ky = from_y - first_y * stride_h, y = first_y; ky < kernel_h && y >= 0; ky += stride_h, --y) {
        if (y >= p.in_h) {
          continue;
        }
        const scalar_t* const line = input + layout.row(plane, y, p.in_h, p.in_w) + (channels == 1 ? 0 : c);
        for (int kx = from_x - first_x * stride_w, at = first_x; kx < kernel_w && at >= 0; kx += stride_w, --at) {
          if (at < p.in_w) {
            sum += static_cast<T>(line[static_cast<int64_t>(at) * channels]) * static_cast<T>(taps[ky * kernel_w + kx]);
          }
        }
      }
      if (bias) {
        sum += static_cast<T>(bias[c]);
      }
      output[row * row_elements + i] = static_cast<scalar_t>(sum);
    }
  }
}

template <typename scalar_t>
__global__ void conv_transpose2d_depthwise_grad_input_kernel(ConvTranspose2dParams p, int64_t rows,
                                                             DepthwiseLayout layout,
                                                             const scalar_t* grad,    // [N, C, OH, OW]
                                                             const scalar_t* weight,  // [C, 1, KH, KW]
                                                             scalar_t* result) {      // [N, C, H, W]
  using T = accumulate_t<scalar_t>;
  const int channels = static_cast<int>(layout.channels);
  const int row_elements = static_cast<int>(p.in_w) * channels;
  const int kernel_h = static_cast<int>(p.kernel_h), kernel_w = static_cast<int>(p.kernel_w);
  for (int64_t row = blockIdx.x * static_cast<int64_t>(blockDim.y) + threadIdx.y; row < rows;
       row += static_cast<int64_t>(gridDim.x) * blockDim.y) {
    const int64_t plane = row / p.in_h;
    const int64_t top = (row - plane * p.in_h) * p.stride_h - p.pad_h;
    for (int i = threadIdx.x; i < row_elements; i += blockDim.x) {
      const int x = i / channels;
      const int64_t c = channels == 1 ? plane % p.in_channels : i - x * channels;
      const int64_t left = x * p.stride_w - p.pad_w;
      const scalar_t* const taps = weight + c * kernel_h * kernel_w;
      T sum = 0;
      for (int ky = 0; ky < kernel_h; ++ky) {
        if (top + ky < 0 || top + ky >= p.out_h) {
          continue;
        }
        const scalar_t* const line = grad + layout.row(plane, top + ky, p.out_h, p.out_w) + (channels == 1 ? 0 : c);
        for (int kx = 0; kx < kernel_w; ++kx) {
          if (left + kx >= 0 && left + kx < p.out_w) {
            sum += static_cast<T>(line[(left + kx) * channels]) * static_cast<T>(taps[ky * kernel_w + kx]);
          }
        }
      }
      result[row * row_elements + i] = static_cast<scalar_t>(sum);
    }
  }
}

// The x threads of a block are channels of channels_last, its y threads share the pixels of one chunk of input rows.
template <typename scalar_t, typename T>
__global__ void conv_transpose2d_depthwise_grad_weight_kernel(ConvTranspose2dParams p, DepthwiseLayout layout,
                                                              Divider in_w, Divider in_h, int chunk_rows,
                                                              int channel_blocks,
                                                              const scalar_t* input,  // [N, C, H, W]
                                                              const scalar_t* grad,   // [N, C, OH, OW]
                                                              T* partial) {           // [chunks, C, KH * KW]
  __shared__ T sums[kThreads];
  const bool planes = layout.channels == 1;
  const int channels = static_cast<int>(p.in_channels);
  const int chunk = blockIdx.x / channel_blocks;
  const int c = (blockIdx.x - chunk * channel_blocks) * blockDim.x + threadIdx.x;
  const int first = chunk * chunk_rows;
  const int rows = min(static_cast<int>(p.batch * p.in_h) - first, chunk_rows);
  const int pixels = rows * static_cast<int>(p.in_w);
  const int taps = static_cast<int>(p.kernel_h * p.kernel_w);
  const int kernel_w = static_cast<int>(p.kernel_w);
  for (int tap = 0; tap < taps; ++tap) {
    const int ky = tap / kernel_w;
    const int64_t dy = ky - p.pad_h, dx = tap - ky * kernel_w - p.pad_w;
    T sum = 0;
    for (int pixel = threadIdx.y; pixel < pixels && c < channels; pixel += blockDim.y) {
      const int row = in_w.divide(pixel);
      const int x = pixel - row * static_cast<int>(p.in_w);
      const int n = in_h.divide(first + row);
      const int y = first + row - n * static_cast<int>(p.in_h);
      const int64_t to_y = y * p.stride_h + dy, to_x = x * p.stride_w + dx;
      if (to_y < 0 || to_y >= p.out_h || to_x < 0 || to_x >= p.out_w) {
        continue;
      }
      const int64_t plane = planes ? static_cast<int64_t>(n) * channels + c : n;
      const int64_t lane = planes ? 0 : c;
      sum += static_cast<T>(input[layout.row(plane, y, p.in_h, p.in_w) + x * layout.channels + lane]) *
             static_cast<T>(grad[layout.row(plane, to_y, p.out_h, p.out_w) + to_x * layout.channels + lane]);
    }
    sums[threadIdx.y * blockDim.x + threadIdx.x] = sum;
    __syncthreads();
    for (unsigned int step = blockDim.y / 2; step > 0; step /= 2) {
      if (threadIdx.y < step) {
        sums[threadIdx.y * blockDim.x + threadIdx.x] += sums[(threadIdx.y + step) * blockDim.x + threadIdx.x];
      }
      __syncthreads();
    }
    if (threadIdx.y == 0 && c < channels) {
      partial[(static_cast<int64_t>(chunk) * channels + c) * taps + tap] = sums[threadIdx.x];
    }
    __syncthreads();
  }
}

template <typename scalar_t>
struct DepthwiseGpu {
  using T = accumulate_t<scalar_t>;
  static constexpr int64_t kChunkPixels = 4096;

  const ConvTranspose2dParams& p;
  const bool channels_last;

  DepthwiseLayout layout() const {
    return {channels_last ? p.in_channels : 1};
  }
  int64_t planes() const {
    return channels_last ? p.batch : p.batch * p.in_channels;
  }
  int64_t chunk_rows() const {
    return std::max<int64_t>(1, kChunkPixels / p.in_w);
  }
  int64_t chunks() const {
    return (p.batch * p.in_h + chunk_rows() - 1) / chunk_rows();
  }

  void forward(const scalar_t* input, const scalar_t* weight, const scalar_t* bias, scalar_t* output,
               cudaStream_t stream) const {
    const RowWalk walk(planes() * p.out_h, p.out_w * layout().channels);
    launch(conv_transpose2d_depthwise_fwd_kernel<scalar_t>, walk.grid, walk.block, 0, stream, p, walk.rows, layout(),
           input, weight, bias, output);
  }

  void grad_input(const scalar_t* grad, const scalar_t* weight, scalar_t* result, cudaStream_t stream) const {
    const RowWalk walk(planes() * p.in_h, p.in_w * layout().channels);
    launch(conv_transpose2d_depthwise_grad_input_kernel<scalar_t>, walk.grid, walk.block, 0, stream, p, walk.rows,
           layout(), grad, weight, result);
  }

  // `partial` is [chunks, C, KH * KW].
  void grad_weight(const scalar_t* input, const scalar_t* grad, T* partial, scalar_t* result,
                   cudaStream_t stream) const {
    const unsigned int width = channels_last ? 32 : 1;
    const int64_t channel_blocks = (p.in_channels + width - 1) / width;
    launch(conv_transpose2d_depthwise_grad_weight_kernel<scalar_t, T>, blocks_for(channel_blocks * chunks(), 1),
           dim3(width, kThreads / width), 0, stream, p, layout(), Divider(static_cast<uint32_t>(p.in_w)),
           Divider(static_cast<uint32_t>(p.in_h)), static_cast<int>(chunk_rows()), static_cast<int>(channel_blocks),
           input, grad, partial);
    const int count = static_cast<int>(p.in_channels * p.taps());
    launch(conv_transpose2d_sum_kernel<scalar_t, T>, blocks_for(count), kThreads, 0, stream,
           static_cast<const T*>(partial), count, static_cast<int>(chunks()), Axis::linear(1), result);
  }
};

// Every index inside an image, and every pixel of a batch, fits 32 bits.
inline bool depthwise_gpu_applies(const ConvTranspose2dParams& p) {
  constexpr int64_t kMost = int64_t{1} << 30;
  return p.depthwise() && p.batch * p.in_plane() < kMost && p.in_channels * p.out_plane() < kMost &&
         p.in_channels * p.taps() < kMost && p.out_h + p.pad_h < kMost && p.out_w + p.pad_w < kMost;
}

}  // namespace
}  // namespace segkernels
