// Convolution on the GPU: depthwise convolution is this package's own, cuDNN through torch does the rest. No atomics:
// every result is summed by one thread in one order.
//
// What an H100 should reach in channels_last and half precision, where the memory leaves time for about 58 instructions
// an element: k = 3 needs 20 of them and k = 5 about 45, so they run at the speed of memory; k = 7 needs 90 and reaches
// half of it.
#include <torch/csrc/stable/library.h>

#include "../common/vendor.h"
#include "conv2d_depthwise.cuh"

namespace segkernels {
namespace {

constexpr int kStagedBytes = 24 * 1024;
constexpr int kPixelStrip = 4;  // results of a thread in channels_last, of all its channels
constexpr int kPlaneStrip = 8;  // in NCHW

// sums[p] += sum over t of taps[t] * source p + t, where load(i, values) reads source i of the strip.
template <int kTaps, int kStrip, int kVec, typename T, typename Load>
__device__ __forceinline__ void add_taps(T (&sums)[kStrip][kVec], const T (&taps)[kTaps][kVec], const Load& load) {
#pragma unroll
  for (int i = 0; i < kStrip + kTaps - 1; ++i) {
    T values[kVec];
    load(i, values);
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      if (i - t >= 0 && i - t < kStrip) {
        add_product(sums[i - t], taps[t], values);
      }
    }
  }
}

template <int kVec, typename scalar_t>
constexpr int kStagedPitch = ChannelTile<kVec>::kChannels + 16 / static_cast<int>(sizeof(scalar_t));

// channels_last. A block has one tile of channels, whose weights lie in shared memory, [tap][channel], and a range of
// strips; kernels too large for that are staged some rows at a time.
template <typename scalar_t, int kVec, int kTaps, int kStrip>
__global__ void __launch_bounds__(kThreads, kVec == 1 ? 1 : 2)
    depthwise_pixels_kernel(DepthwisePlan p, Strips<kStrip> strips, Divisor per_line, Divisor per_image, int64_t tiles,
                            int64_t parts, int staged_rows,
                            const scalar_t* __restrict__ source,  // [N, sources, H, W]
                            const scalar_t* __restrict__ weight,  // [.., 1, KH, KW]
                            const scalar_t* __restrict__ bias,    // [dest] or null
                            scalar_t* __restrict__ dest) {        // [N, dest, OH, OW]
  using T = accumulate_t<scalar_t>;
  constexpr int kChannels = ChannelTile<kVec>::kChannels;
  constexpr int kPitch = kStagedPitch<kVec, scalar_t>;
  scalar_t* const staged = dynamic_shared<scalar_t>();
  const int64_t part = blockIdx.x / tiles;
  const int64_t channel = (blockIdx.x - part * tiles) * kChannels;
  const int64_t c = channel + threadIdx.x * kVec;
  const int64_t items = p.batch * p.rows.dest * strips.count;
  const int64_t last = items * (part + 1) / parts;
  const int kernel_h = p.rows.kernel, kernel_w = p.columns.kernel;
  int have = -1;
#pragma unroll 1
  for (int64_t base = items * part / parts; base < last; base += blockDim.y) {
    const int64_t item = base + threadIdx.y;
    const bool active = item < last && c < p.dest_channels;
    const int64_t line = per_line.quotient(item);
    const int x = strips.first(static_cast<int>(item - line * strips.count));
    const int64_t n = per_image.quotient(line);
    const int y = static_cast<int>(line - n * p.rows.dest);
    T sums[kStrip][kVec];
    clear(sums[0]);
    if (active && bias != nullptr) {
      load_channels(bias + c, sums[0]);
    }
#pragma unroll
    for (int s = 1; s < kStrip; ++s) {
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        sums[s][v] = sums[0][v];
      }
    }
#pragma unroll 1
    for (int q = 0; q < p.sources; ++q) {
#pragma unroll 1
      for (int top = 0; top < kernel_h; top += staged_rows) {
        const int bottom = min(top + staged_rows, kernel_h);
        if (have != q * kernel_h + top) {
          __syncthreads();  // the ones before have been read
          const int count = (bottom - top) * kernel_w;
#pragma unroll 1
          for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < kChannels * count; i += blockDim.x * blockDim.y) {
            const int k = i / count, t = i - k * count;
            const int row = t / kernel_w;
            if (channel + k < p.dest_channels) {
              staged[t * kPitch + k] =
                  weight[((channel + k) * p.sources + q) * p.taps() + p.weight_place(top + row, t - row * kernel_w)];
            }
          }
          __syncthreads();
          have = q * kernel_h + top;
        }
        if (!active) {
          continue;
        }
#pragma unroll 1
        for (int i = top; i < bottom; ++i) {
          const int row = p.rows.feed(y, i);
          if (row < 0) {
            continue;
          }
          const scalar_t* const from =
              source + ((n * p.rows.source + row) * p.columns.source) * p.source_channels + p.source_channel(c, q);
          const auto load = [&](int at, T(&values)[kVec]) {
            clear(values);
            if (inside(at, p.columns.source)) {
              load_channels(from + at * p.source_channels, values);
            }
          };
          const scalar_t* const row_taps = staged + (i - top) * kernel_w * kPitch + threadIdx.x * kVec;
          int j = 0;
          if (strips.shared) {
#pragma unroll 1
            for (; j + kTaps <= kernel_w; j += kTaps) {
              T taps[kTaps][kVec];
#pragma unroll
              for (int t = 0; t < kTaps; ++t) {
                load_channels(row_taps + (j + t) * kPitch, taps[t]);
              }
              const int first = x * p.columns.stride - p.columns.pad + j * p.columns.dilation;
              add_taps(sums, taps, [&](int k, T(&values)[kVec]) { load(first + k * p.columns.dilation, values); });
            }
          }
#pragma unroll 1
          for (; j < kernel_w; ++j) {
            int at;
            if (!p.columns.place(x, j, at)) {
              continue;
            }
            T tap[kVec];
            load_channels(row_taps + j * kPitch, tap);
#pragma unroll
            for (int s = 0; s < kStrip; ++s) {
              T values[kVec];
              load(at + s * strips.hop, values);
              add_product(sums[s], tap, values);
            }
          }
        }
      }
    }
    if (!active) {
      continue;
    }
    scalar_t* const to = dest + line * p.columns.dest * p.dest_channels + c;
#pragma unroll
    for (int s = 0; s < kStrip; ++s) {
      if (x + s * strips.step < p.columns.dest) {
#pragma unroll
        for (int v = 0; v < kVec; ++v) {
          sums[s][v] = p.activated(sums[s][v]);
        }
        store_channels(to + (x + s * strips.step) * p.dest_channels, sums[s]);
      }
    }
  }
}

// NCHW: neighbouring threads are columns of a plane, or of the next one.
template <typename scalar_t, int kTaps, int kStrip>
__global__ void __launch_bounds__(kThreads, 1)
    depthwise_planes_kernel(DepthwisePlan p, Strips<kStrip> strips, Divisor per_line, Divisor per_plane,
                            Divisor per_image,
                            const scalar_t* __restrict__ source,  // [N, sources, H, W]
                            const scalar_t* __restrict__ weight,  // [.., 1, KH, KW]
                            const scalar_t* __restrict__ bias,    // [dest] or null
                            scalar_t* __restrict__ dest) {        // [N, dest, OH, OW]
  using T = accumulate_t<scalar_t>;
  const int64_t items = p.batch * p.dest_channels * strips.count * p.columns.dest;
  const int kernel_h = p.rows.kernel, kernel_w = p.columns.kernel;
#pragma unroll 1
  for (int64_t item = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t line = per_line.quotient(item);
    const int x = static_cast<int>(item - line * p.columns.dest);
    const int64_t plane = per_plane.quotient(line);
    const int y = strips.first(static_cast<int>(line - plane * strips.count));
    const int64_t n = per_image.quotient(plane);
    const int64_t c = plane - n * p.dest_channels;
    T sums[kStrip][1];
    const T start = bias == nullptr ? T(0) : static_cast<T>(bias[c]);
#pragma unroll
    for (int s = 0; s < kStrip; ++s) {
      sums[s][0] = start;
    }
#pragma unroll 1
    for (int q = 0; q < p.sources; ++q) {
      const scalar_t* const from = source + (n * p.source_channels + p.source_channel(c, q)) * p.rows.source *
                                                static_cast<int64_t>(p.columns.source);
      const scalar_t* const kernel = weight + (c * p.sources + q) * p.taps();
#pragma unroll 1
      for (int j = 0; j < kernel_w; ++j) {
        const int column = p.columns.feed(x, j);
        if (column < 0) {
          continue;
        }
        const auto load = [&](int at, T(&values)[1]) {
          values[0] = inside(at, p.rows.source)
                          ? static_cast<T>(from[static_cast<int64_t>(at) * p.columns.source + column])
                          : T(0);
        };
        int i = 0;
        if (strips.shared) {
#pragma unroll 1
          for (; i + kTaps <= kernel_h; i += kTaps) {
            T taps[kTaps][1];
#pragma unroll
            for (int t = 0; t < kTaps; ++t) {
              taps[t][0] = static_cast<T>(kernel[p.weight_place(i + t, j)]);
            }
            const int first = y * p.rows.stride - p.rows.pad + i * p.rows.dilation;
            add_taps(sums, taps, [&](int k, T(&values)[1]) { load(first + k * p.rows.dilation, values); });
          }
        }
#pragma unroll 1
        for (; i < kernel_h; ++i) {
          int at;
          if (!p.rows.place(y, i, at)) {
            continue;
          }
          const T tap[1] = {static_cast<T>(kernel[p.weight_place(i, j)])};
#pragma unroll
          for (int s = 0; s < kStrip; ++s) {
            T values[1];
            load(at + s * strips.hop, values);
            add_product(sums[s], tap, values);
          }
        }
      }
    }
    scalar_t* const to = dest + plane * p.rows.dest * p.columns.dest + x;
#pragma unroll
    for (int s = 0; s < kStrip; ++s) {
      if (y + s * strips.step < p.rows.dest) {
        to[static_cast<int64_t>(y + s * strips.step) * p.columns.dest] = static_cast<scalar_t>(p.activated(sums[s][0]));
      }
    }
  }
}

template <typename scalar_t, int kVec, int kTaps>
void run_pixels(const DepthwisePlan& p, const scalar_t* source, const scalar_t* weight, const scalar_t* bias,
                scalar_t* dest, const DeviceScope& scope) {
  using Tile = ChannelTile<kVec>;
  constexpr int kStrip = kPixelStrip;
  constexpr int kBlocksEach = 16;  // of a multiprocessor
  const Strips<kStrip> strips(p.columns);
  const dim3 block(Tile::kLanes, kThreads / Tile::kLanes);
  const int64_t tiles = Tile::count(p.dest_channels);
  const int64_t items = p.batch * p.rows.dest * strips.count;
  const int64_t most = (items + block.y - 1) / block.y;
  const int64_t parts =
      std::clamp<int64_t>((int64_t{scope.multiprocessors()} * kBlocksEach + tiles - 1) / tiles, 1, most);
  const int row_bytes = p.columns.kernel * kStagedPitch<kVec, scalar_t> * static_cast<int>(sizeof(scalar_t));
  const int staged_rows = std::clamp(kStagedBytes / row_bytes, 1, p.rows.kernel);
  launch(depthwise_pixels_kernel<scalar_t, kVec, kTaps, kStrip>, static_cast<unsigned int>(tiles * parts), block,
         static_cast<size_t>(staged_rows) * row_bytes, scope.stream(), p, strips, Divisor(strips.count),
         Divisor(p.rows.dest), tiles, parts, staged_rows, source, weight, bias, dest);
}

}  // namespace

void run_depthwise(const DepthwisePlan& p, const Tensor& source, const Tensor& weight, const Tensor* bias, Tensor& dest,
                   bool channels_last) {
  const DeviceScope scope(source);
  dispatch_floating(source.scalar_type(), "conv2d", [&]<typename scalar_t>() {
    const auto* from = static_cast<const scalar_t*>(source.const_data_ptr());
    const auto* kernels = static_cast<const scalar_t*>(weight.const_data_ptr());
    const auto* add = bias == nullptr ? nullptr : static_cast<const scalar_t*>(bias->const_data_ptr());
    auto* to = static_cast<scalar_t*>(dest.mutable_data_ptr());
    if (!channels_last) {
      dispatch_taps<scalar_t>(p.rows.kernel, [&]<int kTaps>() {
        const Strips<kPlaneStrip> strips(p.rows);
        const int64_t items = p.batch * p.dest_channels * strips.count * p.columns.dest;
        launch(depthwise_planes_kernel<scalar_t, kTaps, kPlaneStrip>, blocks_for(items), kThreads, 0, scope.stream(), p,
               strips, Divisor(p.columns.dest), Divisor(strips.count), Divisor(p.dest_channels), from, kernels, add,
               to);
      });
    } else if (p.sources * p.multiplier == 1 && vectors_fit(p.dest_channels, kVector<scalar_t>, {from, add, to})) {
      dispatch_taps<scalar_t>(p.columns.kernel, [&]<int kTaps>() {
        run_pixels<scalar_t, kVector<scalar_t>, kTaps>(p, from, kernels, add, to, scope);
      });
    } else {
      run_pixels<scalar_t, 1, 3>(p, from, kernels, add, to, scope);
    }
  });
}

namespace {

Tensor conv2d_cuda(const Tensor& input,                // [N, Cin, H, W]
                   const Tensor& weight,               // [Cout, Cin / groups, KH, KW]
                   const std::optional<Tensor>& bias,  // [Cout]
                   IntList stride, IntList padding, IntList dilation, int64_t groups) {
  const Conv2dParams p = conv2d_params("conv2d", input, weight, stride, padding, dilation, groups);
  if (!p.depthwise()) {
    return VendorConvolution{stride, padding, dilation, {0, 0}, false, groups}.forward(input, weight, bias);
  }
  const bool channels_last = is_channels_last(input);
  Tensor output = empty_nchw(p.batch, p.out_channels, p.out_h, p.out_w, input.scalar_type(), input,
                             channels_last);  // [N, Cout, OH, OW]
  if (output.numel() == 0) {
    return output;
  }
  const Tensor x = to_dense(input, channels_last);
  const Tensor w = torch::stable::contiguous(weight);
  const Tensor b = bias ? torch::stable::contiguous(*bias) : Tensor();
  run_depthwise(depthwise_plan(p), x, w, bias ? &b : nullptr, output, channels_last);
  return output;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("conv2d", TORCH_BOX(&conv2d_cuda));
}

}  // namespace segkernels
