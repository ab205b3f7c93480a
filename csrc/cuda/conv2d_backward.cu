// The gradients of a convolution on the GPU; see conv2d.cu. The depthwise weight's gradient is summed in two stages:
// parts of the pixels, whose number is the shape's alone, then the parts in order. Input and gradient come from memory
// once: the threads of a block that sum different taps of the same pixels find them in L1.
//
// What an H100 should reach in channels_last and half precision: k = 3 and 5 run at half of the memory's speed and
// more, k = 7 at about half.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/loss.cuh"
#include "../common/vendor.h"
#include "conv2d_depthwise.cuh"

namespace segkernels {
namespace {

constexpr int kGradientStrip = 4;
constexpr int64_t kBlocks = 512;  // about so many fill the largest GPU several times

// sums[t] += sum over p < held of source p + t times grads[p], where load(i, values) reads source i of the strip. What
// stands behind the last result may be infinite.
template <int kTaps, int kVec, typename T, typename Load>
__device__ __forceinline__ void add_gradients(T (&sums)[kTaps][kVec], const T (&grads)[kGradientStrip][kVec], int held,
                                              const Load& load) {
#pragma unroll
  for (int i = 0; i < kGradientStrip + kTaps - 1; ++i) {
    T values[kVec];
    load(i, values);
#pragma unroll
    for (int p = 0; p < kGradientStrip; ++p) {
      if (i - p >= 0 && i - p < kTaps && p < held) {
        add_product(sums[i - p], grads[p], values);
      }
    }
  }
}

// The same of one row of taps, from tap `first` on, for any stride; load(at, values) reads source `at`. Strips that do
// not share their sources take three taps at a time.
template <int kTaps, int kVec, typename T, typename Load>
__device__ __forceinline__ void add_gradients(const DepthwiseAxis& axis, const Strips<kGradientStrip>& strips,
                                              int start, int first, T (&sums)[kTaps][kVec],
                                              const T (&grads)[kGradientStrip][kVec], const Load& load) {
  const int held = (axis.dest - start + strips.step - 1) / strips.step;
  const int at = start * axis.stride - axis.pad + first * axis.dilation;
  if (kTaps > 3 || strips.shared) {
    add_gradients(sums, grads, held, [&](int i, T(&values)[kVec]) { load(at + i * axis.dilation, values); });
    return;
  }
  if constexpr (kTaps == 3) {
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
#pragma unroll
      for (int p = 0; p < kGradientStrip; ++p) {
        if (first + t < axis.kernel && p < held) {
          T values[kVec];
          load(at + t * axis.dilation + p * strips.hop, values);
          add_product(sums[t], grads[p], values);
        }
      }
    }
  }
}

// A unit of work sums kTaps neighbouring taps of one line of the kernel; the last unit sums the gradient alone, for the
// bias.
template <int kTaps>
struct Units {
  int chunks, count;

  Units(int lines, int taps) : chunks((taps + kTaps - 1) / kTaps), count(lines * chunks + 1) {}
};

// channels_last, blocks of (channels, units, slices of the part's pixels).
template <typename scalar_t, int kVec, int kTaps>
__global__ void __launch_bounds__(kThreads, kTaps == 3 ? 2 : 1)
    depthwise_weight_pixels_kernel(DepthwisePlan p, Strips<kGradientStrip> strips, Units<kTaps> units, Divisor per_line,
                                   Divisor per_image, int64_t tiles, int unit_blocks, int64_t parts,
                                   const scalar_t* __restrict__ input,           // [N, Cin, H, W]
                                   const scalar_t* __restrict__ grad,            // [N, Cout, OH, OW]
                                   accumulate_t<scalar_t>* __restrict__ partial  // [parts, taps + 1, Cout]
    ) {
  using T = accumulate_t<scalar_t>;
  T* const other = dynamic_shared<T>();
  const int64_t rest = blockIdx.x / tiles;
  const int64_t part = rest / unit_blocks;
  const int unit = static_cast<int>(rest - part * unit_blocks) * blockDim.y + threadIdx.y;
  const int c = static_cast<int>(blockIdx.x - rest * tiles) * ChannelTile<kVec>::kChannels + threadIdx.x * kVec;
  const bool active = unit < units.count && c < p.dest_channels;
  const bool bias = unit == units.count - 1;
  const int i = unit / units.chunks;
  const int j = (unit - i * units.chunks) * kTaps;
  const int64_t items = p.batch * p.rows.dest * strips.count;
  const int64_t last = active ? items * (part + 1) / parts : 0;
  T sums[kTaps][kVec];
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    clear(sums[t]);
  }
#pragma unroll 1
  for (int64_t item = items * part / parts + threadIdx.z; item < last; item += blockDim.z) {
    const int64_t line = per_line.quotient(item);
    const int x = strips.first(static_cast<int>(item - line * strips.count));
    const int64_t n = per_image.quotient(line);
    const int row = bias ? 0 : p.rows.feed(static_cast<int>(line - n * p.rows.dest), i);
    if (row < 0) {
      continue;
    }
    T grads[kGradientStrip][kVec];
    const scalar_t* const above = grad + line * p.columns.dest * p.dest_channels + c;
#pragma unroll
    for (int s = 0; s < kGradientStrip; ++s) {
      clear(grads[s]);
      if (x + s * strips.step < p.columns.dest) {
        load_channels(above + (x + s * strips.step) * p.dest_channels, grads[s]);
      }
    }
    if (bias) {
#pragma unroll
      for (int s = 0; s < kGradientStrip; ++s) {
#pragma unroll
        for (int v = 0; v < kVec; ++v) {
          sums[0][v] += grads[s][v];
        }
      }
      continue;
    }
    const scalar_t* const from =
        input + ((n * p.rows.source + row) * p.columns.source) * p.source_channels + p.source_channel(c, 0);
    add_gradients(p.columns, strips, x, j, sums, grads, [&](int at, T(&values)[kVec]) {
      clear(values);
      if (inside(at, p.columns.source)) {
        load_channels(from + at * p.source_channels, values);
      }
    });
  }
  // The slices in order.
  T* const mine = other + (threadIdx.y * blockDim.x + threadIdx.x) * kVec;
  const int pitch = blockDim.x * blockDim.y * kVec;
#pragma unroll 1
  for (int slice = 1; slice < static_cast<int>(blockDim.z); ++slice) {
    __syncthreads();
    if (static_cast<int>(threadIdx.z) == slice) {
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
#pragma unroll
        for (int v = 0; v < kVec; ++v) {
          mine[t * pitch + v] = sums[t][v];
        }
      }
    }
    __syncthreads();
    if (threadIdx.z == 0) {
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
#pragma unroll
        for (int v = 0; v < kVec; ++v) {
          sums[t][v] += mine[t * pitch + v];
        }
      }
    }
  }
  if (threadIdx.z > 0 || !active) {
    return;
  }
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    if (bias ? t == 0 : j + t < p.columns.kernel) {
      const int64_t tap = bias ? p.taps() : i * p.columns.kernel + j + t;
#pragma unroll
      for (int v = 0; v < kVec; ++v) {
        partial[(part * (p.taps() + 1) + tap) * p.dest_channels + c + v] = sums[t][v];
      }
    }
  }
}

// NCHW: a block sums a part of one channel's pixels, neighbouring threads are columns. The units follow each other: a
// part's pixels are in L1 by then.
template <typename scalar_t, int kTaps>
__global__ void __launch_bounds__(kThreads, 1)
    depthwise_weight_planes_kernel(DepthwisePlan p, Strips<kGradientStrip> strips, Units<kTaps> units, Divisor per_line,
                                   Divisor per_plane, int64_t parts,
                                   const scalar_t* __restrict__ input,           // [N, Cin, H, W]
                                   const scalar_t* __restrict__ grad,            // [N, Cout, OH, OW]
                                   accumulate_t<scalar_t>* __restrict__ partial  // [parts, taps + 1, Cout]
    ) {
  using T = accumulate_t<scalar_t>;
  const int64_t part = blockIdx.x / p.dest_channels;
  const int64_t c = blockIdx.x - part * p.dest_channels;
  const int64_t items = p.batch * strips.count * p.columns.dest;
  const int64_t last = items * (part + 1) / parts;
  const int width = p.columns.dest;
#pragma unroll 1
  for (int unit = 0; unit < units.count; ++unit) {
    const bool bias = unit == units.count - 1;
    const int j = unit / units.chunks;
    const int i = (unit - j * units.chunks) * kTaps;
    T sums[kTaps][1] = {};
#pragma unroll 1
    for (int64_t item = items * part / parts + threadIdx.x; item < last; item += kThreads) {
      const int64_t line = per_line.quotient(item);
      const int x = static_cast<int>(item - line * width);
      const int64_t n = per_plane.quotient(line);
      const int y = strips.first(static_cast<int>(line - n * strips.count));
      const int column = bias ? 0 : p.columns.feed(x, j);
      if (column < 0) {
        continue;
      }
      const scalar_t* const above = grad + (n * p.dest_channels + c) * p.rows.dest * width + x;
      T grads[kGradientStrip][1] = {};
#pragma unroll
      for (int s = 0; s < kGradientStrip; ++s) {
        if (y + s * strips.step < p.rows.dest) {
          grads[s][0] = static_cast<T>(above[static_cast<int64_t>(y + s * strips.step) * width]);
        }
      }
      if (bias) {
#pragma unroll
        for (int s = 0; s < kGradientStrip; ++s) {
          sums[0][0] += grads[s][0];
        }
        continue;
      }
      const scalar_t* const from = input + (n * p.source_channels + p.source_channel(c, 0)) * p.rows.source *
                                               static_cast<int64_t>(p.columns.source);
      add_gradients(p.rows, strips, y, i, sums, grads, [&](int at, T(&values)[1]) {
        values[0] = inside(at, p.rows.source)
                        ? static_cast<T>(from[static_cast<int64_t>(at) * p.columns.source + column])
                        : T(0);
      });
    }
    double totals[kTaps];
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      totals[t] = sums[t][0];
    }
    block_sums(totals);
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      if (static_cast<int>(threadIdx.x) == t && (bias ? t == 0 : i + t < p.rows.kernel)) {
        const int64_t tap = bias ? p.taps() : (i + t) * p.columns.kernel + j;
        partial[(part * (p.taps() + 1) + tap) * p.dest_channels + c] = static_cast<T>(totals[t]);
      }
    }
  }
}

// The second stage: a block adds up the parts of 32 sums, kSlices threads each.
constexpr int kSlices = kThreads / 32;

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 1)
    depthwise_weight_parts_kernel(int64_t channels, int taps, int64_t parts,
                                  const accumulate_t<scalar_t>* __restrict__ partial,  // [parts, taps + 1, Cout]
                                  scalar_t* __restrict__ grad_weight,                  // [Cout, taps] or null
                                  scalar_t* __restrict__ grad_bias) {                  // [Cout] or null
  __shared__ double slices[kSlices][32];
  const int64_t count = channels * (taps + 1);
  const int64_t sum = blockIdx.x * int64_t{32} + threadIdx.x;
  double total = 0;
  if (sum < count) {
#pragma unroll 4
    for (int64_t part = threadIdx.y; part < parts; part += kSlices) {
      total += partial[part * count + sum];
    }
  }
  slices[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y > 0 || sum >= count) {
    return;
  }
#pragma unroll
  for (int slice = 1; slice < kSlices; ++slice) {
    total += slices[slice][threadIdx.x];
  }
  const int64_t tap = sum / channels;
  const int64_t c = sum - tap * channels;
  const auto value = static_cast<scalar_t>(static_cast<accumulate_t<scalar_t>>(total));
  if (tap < taps && grad_weight != nullptr) {
    grad_weight[c * taps + tap] = value;
  } else if (tap == taps && grad_bias != nullptr) {
    grad_bias[c] = value;
  }
}

// How many parts the pixels are cut into, where one has at least `least` items of `items` and takes `blocks` blocks.
int64_t part_count(int64_t blocks, int64_t items, int64_t least) {
  return std::clamp<int64_t>((kBlocks + blocks - 1) / blocks, 1, (items + least - 1) / least);
}

template <typename T>
Tensor empty_partial(int64_t parts, const DepthwisePlan& p, const Tensor& like) {
  const auto dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty({parts, p.taps() + 1, p.dest_channels}, dtype, std::nullopt, like.device());
}

template <typename scalar_t, int kVec, int kTaps>
Tensor weight_pixels(const DepthwisePlan& p, const Tensor& input, const Tensor& grad, const DeviceScope& scope) {
  using T = accumulate_t<scalar_t>;
  using Tile = ChannelTile<kVec>;
  const Strips<kGradientStrip> strips(p.columns);
  const Units<kTaps> units(p.rows.kernel, p.columns.kernel);
  constexpr int kRoom = kThreads / Tile::kLanes;
  const dim3 block(Tile::kLanes, std::min(units.count, kRoom), std::max(1, kRoom / units.count));
  const int64_t tiles = Tile::count(p.dest_channels);
  const int unit_blocks = (units.count + static_cast<int>(block.y) - 1) / static_cast<int>(block.y);
  const int64_t parts =
      part_count(tiles * unit_blocks, p.batch * p.rows.dest * strips.count, 4 * static_cast<int64_t>(block.z));
  Tensor partial = empty_partial<T>(parts, p, input);
  launch(depthwise_weight_pixels_kernel<scalar_t, kVec, kTaps>, static_cast<unsigned int>(tiles * unit_blocks * parts),
         block, sizeof(T) * kTaps * block.x * block.y * kVec, scope.stream(), p, strips, units, Divisor(strips.count),
         Divisor(p.rows.dest), tiles, unit_blocks, parts, static_cast<const scalar_t*>(input.const_data_ptr()),
         static_cast<const scalar_t*>(grad.const_data_ptr()), static_cast<T*>(partial.mutable_data_ptr()));
  return partial;
}

template <typename scalar_t, int kTaps>
Tensor weight_planes(const DepthwisePlan& p, const Tensor& input, const Tensor& grad, const DeviceScope& scope) {
  using T = accumulate_t<scalar_t>;
  const Strips<kGradientStrip> strips(p.rows);
  const Units<kTaps> units(p.columns.kernel, p.rows.kernel);
  const int64_t items = p.batch * strips.count * p.columns.dest;
  // So many that a part stays in L1.
  const int64_t parts = std::max(part_count(p.dest_channels, items, 4 * kThreads), items / (8 * kThreads));
  Tensor partial = empty_partial<T>(parts, p, input);
  launch(depthwise_weight_planes_kernel<scalar_t, kTaps>, static_cast<unsigned int>(p.dest_channels * parts), kThreads,
         0, scope.stream(), p, strips, units, Divisor(p.columns.dest), Divisor(strips.count), parts,
         static_cast<const scalar_t*>(input.const_data_ptr()), static_cast<const scalar_t*>(grad.const_data_ptr()),
         static_cast<T*>(partial.mutable_data_ptr()));
  return partial;
}

// The kernel's size where its taps can be taken together.
int together(const DepthwiseAxis& axis) {
  return Strips<kGradientStrip>(axis).shared ? axis.kernel : 3;
}

// `grad_weight` and `grad_bias` may be null.
void weight_gradient(const Conv2dParams& params, const Tensor& input, const Tensor& grad, Tensor* grad_weight,
                     Tensor* grad_bias, bool channels_last) {
  const DepthwisePlan p = depthwise_plan(params);
  const DeviceScope scope(input);
  dispatch_floating(input.scalar_type(), "conv2d_backward", [&]<typename scalar_t>() {
    const bool vectors = p.multiplier == 1 && vectors_fit(p.dest_channels, kVector<scalar_t>,
                                                          {input.const_data_ptr(), grad.const_data_ptr()});
    Tensor partial;
    if (!channels_last) {
      dispatch_taps<scalar_t>(together(p.rows),
                              [&]<int kTaps>() { partial = weight_planes<scalar_t, kTaps>(p, input, grad, scope); });
    } else if (vectors) {
      dispatch_taps<scalar_t>(together(p.columns), [&]<int kTaps>() {
        partial = weight_pixels<scalar_t, kVector<scalar_t>, kTaps>(p, input, grad, scope);
      });
    } else {
      partial = weight_pixels<scalar_t, 1, 3>(p, input, grad, scope);
    }
    const auto pointer = [](Tensor* tensor) {
      return tensor == nullptr ? nullptr : static_cast<scalar_t*>(tensor->mutable_data_ptr());
    };
    const int64_t sums = p.dest_channels * (p.taps() + 1);
    launch(depthwise_weight_parts_kernel<scalar_t>, blocks_for(sums, 32), dim3(32, kSlices), 0, scope.stream(),
           p.dest_channels, p.taps(), partial.size(0),
           static_cast<const accumulate_t<scalar_t>*>(partial.const_data_ptr()), pointer(grad_weight),
           pointer(grad_bias));
  });
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> depthwise_backward(const Conv2dParams& p, const Tensor& grad_output,
                                                      const Tensor& input, const Tensor& weight, bool need_input,
                                                      bool need_weight, bool need_bias) {
  const Tensor none = torch::stable::new_empty(input, {0});
  const bool channels_last = is_channels_last(input);
  const Tensor g = to_dense(grad_output, channels_last);
  const Tensor x = to_dense(input, channels_last);
  const ScalarType dtype = input.scalar_type();
  Tensor grad_input =
      need_input ? empty_nchw(p.batch, p.in_channels, p.in_h, p.in_w, dtype, input, channels_last) : none;
  Tensor grad_weight = need_weight ? empty_nchw(p.out_channels, 1, p.kernel_h, p.kernel_w, dtype, weight, false) : none;
  Tensor grad_bias = need_bias ? torch::stable::new_empty(input, {p.out_channels}) : none;
  if (need_input) {
    const Tensor w = torch::stable::contiguous(weight);
    run_depthwise(depthwise_gradient_plan(p), g, w, nullptr, grad_input, channels_last);
  }
  if (need_weight || need_bias) {
    weight_gradient(p, x, g, need_weight ? &grad_weight : nullptr, need_bias ? &grad_bias : nullptr, channels_last);
  }
  return {grad_input, grad_weight, grad_bias};
}

namespace {

// Gradients that are not asked for come back empty.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward_cuda(const Tensor& grad_output,  // [N, Cout, OH, OW]
                                                        const Tensor& input,        // [N, Cin, H, W]
                                                        const Tensor& weight,       // [Cout, Cin / groups, KH, KW]
                                                        IntList stride, IntList padding, IntList dilation,
                                                        int64_t groups, bool need_input, bool need_weight,
                                                        bool need_bias) {
  const Conv2dParams p = conv2d_params("conv2d_backward", input, weight, stride, padding, dilation, groups);
  check_dim(grad_output, 4, "conv2d_backward", "grad_output");
  STD_TORCH_CHECK(grad_output.size(0) == p.batch && grad_output.size(1) == p.out_channels &&
                      grad_output.size(2) == p.out_h && grad_output.size(3) == p.out_w,
                  "conv2d_backward: expected grad_output [", p.batch, ", ", p.out_channels, ", ", p.out_h, ", ",
                  p.out_w, "], got shape ", shape_string(grad_output));
  if (p.depthwise() && grad_output.numel() > 0 && input.numel() > 0) {
    return depthwise_backward(p, grad_output, input, weight, need_input, need_weight, need_bias);
  }
  const Tensor none = torch::stable::new_empty(input, {0});
  const VendorConvolution vendor{stride, padding, dilation, {0, 0}, false, groups};
  const auto grads = vendor.backward(grad_output, input, weight, {need_input, need_weight, need_bias});
  return {grads[0] ? to_dense(*grads[0], is_channels_last(input)) : none, grads[1] ? to_dense(*grads[1], false) : none,
          grads[2].value_or(none)};
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward_cuda));
}

}  // namespace segkernels
