// Depthwise convolution on the GPU: what the forward, the input's gradient and the weight's gradient share.
//
// A thread owns a strip of kStrip results along one axis, as far apart as the taps are, so that neighbours in the strip
// read the same sources: kStrip + kTaps - 1 loads and conversions feed kStrip * kTaps products. In channels_last the
// strip lies along the columns and neighbouring threads are groups of channels, 16 bytes each; in NCHW it lies along
// the rows and neighbouring threads are columns.
#pragma once

#include <optional>
#include <tuple>

#include "../common/conv2d.h"
#include "../common/convolution_axis.h"
#include "../common/cuda.cuh"
#include "../common/dispatch.h"

namespace segkernels {

using DepthwiseAxis = ConvolutionAxis<int>;

// Division by a number known at launch: a multiplication. Exact while dividend times divisor is less than 2^64.
struct Divisor {
  uint64_t magic;  // 2^64 / divisor, rounded up; 0 for 1

  explicit Divisor(int64_t divisor) : magic(divisor == 1 ? 0 : ~uint64_t{0} / static_cast<uint64_t>(divisor) + 1) {}
  __device__ __forceinline__ int64_t quotient(int64_t dividend) const {
    return magic == 0 ? dividend : static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(dividend), magic));
  }
};

// The strips of an axis: strip s begins at first(s), and its positions are `step` apart.
template <int kStrip>
struct Strips {
  int step, count;
  int hop;      // source positions between two of the strip's
  bool shared;  // a hop is a tap: neighbours read the same sources

  Strips(const DepthwiseAxis& axis) {
    shared = !axis.transposed && axis.dilation % axis.stride == 0 && axis.dilation / axis.stride < axis.dest;
    step = shared ? axis.dilation / axis.stride : axis.transposed ? axis.stride : 1;
    hop = axis.transposed ? step / axis.stride : step * axis.stride;
    const int whole = axis.dest / (step * kStrip);
    count = whole * step + std::min(step, axis.dest - whole * step * kStrip);
  }
  __device__ __forceinline__ int first(int strip) const {
    return step == 1 ? strip * kStrip : strip / step * (step * kStrip) + strip % step;
  }
};

// A convolution, or the transposed one that makes the input's gradient: `source` and `dest` are the tensors that it
// reads and writes.
struct DepthwisePlan {
  DepthwiseAxis rows, columns;
  int64_t batch, source_channels, dest_channels;
  int sources;     // channels that a result sums over
  int multiplier;  // results of a source channel; one of the two is 1
  // Where tap (i, j) of a channel stands: the gradient of stride 1 is a convolution with the weights read backwards.
  int weight_origin, weight_row, weight_column;
  bool relu;  // of the results; NaN stays

  __device__ __forceinline__ int64_t source_channel(int64_t dest_channel, int q) const {
    return multiplier == 1 ? dest_channel * sources + q : dest_channel / multiplier;
  }
  __device__ __forceinline__ int weight_place(int i, int j) const {
    return weight_origin + i * weight_row + j * weight_column;
  }
  template <typename T>
  __device__ __forceinline__ T activated(T value) const {
    return relu && value < T(0) ? T(0) : value;
  }
  __host__ __device__ int taps() const {
    return rows.kernel * columns.kernel;
  }
};

inline DepthwiseAxis depthwise_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                                    int64_t dilation) {
  static constexpr int64_t kMaxSide = int64_t{1} << 26;
  STD_TORCH_CHECK(in + 2 * pad < kMaxSide, "conv2d: expected a padded side of less than ", kMaxSide, ", got ",
                  in + 2 * pad);
  const auto narrow = [](int64_t value) { return static_cast<int>(std::min(value, kMaxSide)); };
  return {narrow(in), narrow(out), narrow(kernel), narrow(stride), narrow(pad), narrow(dilation), false};
}

inline DepthwisePlan depthwise_plan(const Conv2dParams& p) {
  DepthwisePlan plan{};
  plan.rows = depthwise_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h);
  plan.columns = depthwise_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w);
  plan.batch = p.batch;
  plan.source_channels = p.in_channels;
  plan.dest_channels = p.out_channels;
  plan.sources = 1;
  plan.multiplier = static_cast<int>(p.multiplier());
  plan.weight_row = plan.columns.kernel;
  plan.weight_column = 1;
  return plan;
}

// The gradient of the input as a convolution of the output's gradient.
inline DepthwisePlan depthwise_gradient_plan(const Conv2dParams& p) {
  DepthwisePlan plan = depthwise_plan(p);
  std::swap(plan.source_channels, plan.dest_channels);
  std::swap(plan.sources, plan.multiplier);
  const auto turn = [&plan](DepthwiseAxis& axis, int& weight_step) {
    std::swap(axis.source, axis.dest);
    axis.transposed = axis.stride > 1;
    if (!axis.transposed) {
      axis.pad = (axis.kernel - 1) * axis.dilation - axis.pad;
      plan.weight_origin += (axis.kernel - 1) * weight_step;
      weight_step = -weight_step;
    }
  };
  turn(plan.rows, plan.weight_row);
  turn(plan.columns, plan.weight_column);
  return plan;
}

__device__ __forceinline__ bool inside(int at, int size) {
  return static_cast<unsigned int>(at) < static_cast<unsigned int>(size);
}

// Channels of a thread in channels_last: 16 bytes.
template <typename scalar_t>
constexpr int kVector = 16 / static_cast<int>(sizeof(scalar_t));

template <int kVec, typename scalar_t, typename T>
__device__ __forceinline__ void load_channels(const scalar_t* from, T (&values)[kVec]) {
  if constexpr (kVec == 1) {
    values[0] = static_cast<T>(*from);
  } else {
    __align__(16) scalar_t raw[kVec];
    *reinterpret_cast<uint4*>(raw) = *reinterpret_cast<const uint4*>(from);
#pragma unroll
    for (int v = 0; v < kVec; ++v) {
      values[v] = static_cast<T>(raw[v]);
    }
  }
}

template <int kVec, typename scalar_t, typename T>
__device__ __forceinline__ void store_channels(scalar_t* to, const T (&values)[kVec]) {
  __align__(16) scalar_t raw[kVec];
#pragma unroll
  for (int v = 0; v < kVec; ++v) {
    raw[v] = static_cast<scalar_t>(values[v]);
  }
  if constexpr (kVec == 1) {
    *to = raw[0];
  } else {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(raw);
  }
}

template <int kVec, typename T>
__device__ __forceinline__ void clear(T (&values)[kVec]) {
#pragma unroll
  for (int v = 0; v < kVec; ++v) {
    values[v] = T(0);
  }
}

template <int kVec, typename T>
__device__ __forceinline__ void add_product(T (&sums)[kVec], const T (&a)[kVec], const T (&b)[kVec]) {
#pragma unroll
  for (int v = 0; v < kVec; ++v) {
    sums[v] += a[v] * b[v];
  }
}

// Blocks of channels in channels_last: `lanes` threads of kVec channels.
template <int kVec>
struct ChannelTile {
  static constexpr int kLanes = kVec == 1 ? 32 : 8;
  static constexpr int kChannels = kLanes * kVec;

  static int64_t count(int64_t channels) {
    return (channels + kChannels - 1) / kChannels;
  }
};

inline bool vectors_fit(int64_t channels, int64_t width, std::initializer_list<const void*> pointers) {
  bool fit = channels % width == 0;
  for (const void* pointer : pointers) {
    fit = fit && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  }
  return fit;
}

// Calls f with the number of neighbouring taps that are taken together, the one that leaves the fewest single ones.
template <typename scalar_t, typename F>
void dispatch_taps(int kernel, const F& f) {
  const auto passes = [kernel](int taps) { return kernel / taps + kernel % taps; };
  if constexpr (!std::is_same_v<scalar_t, double>) {
    if (passes(7) <= std::min(passes(5), passes(3))) {
      return f.template operator()<7>();
    }
    if (passes(5) <= passes(3)) {
      return f.template operator()<5>();
    }
  }
  f.template operator()<3>();
}

// Runs the plan; `bias` may be null. Both maps are dense in the same layout, the weight [.., 1, KH, KW] is contiguous.
void run_depthwise(const DepthwisePlan& plan, const Tensor& source, const Tensor& weight, const Tensor* bias,
                   Tensor& dest, bool channels_last);

// The gradients of input, weight and bias of a depthwise convolution; those that are not asked for come back empty.
std::tuple<Tensor, Tensor, Tensor> depthwise_backward(const Conv2dParams& p, const Tensor& grad_output,
                                                      const Tensor& input, const Tensor& weight, bool need_input,
                                                      bool need_weight, bool need_bias);

}  // namespace segkernels
