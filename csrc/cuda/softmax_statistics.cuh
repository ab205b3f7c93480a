// Losses on softmax probabilities on the GPU: what a pixel computes, wherever its logits come from.
//
// Two passes over a pixel's classes, whose logits lie in shared memory: the largest, then the sums of exponentials. An
// ignored pixel has no part in anything; a label outside [0, C) makes its pixel NaN, since to raise the host would have
// to wait.
#pragma once

#include <cmath>
#include <optional>

#include "../common/labels.cuh"
#include "../common/loss.cuh"
#include "../common/softmax_check.h"

namespace segkernels {
namespace {

struct SoftmaxParams {
  int64_t batch, classes;
  int64_t in_h, in_w, out_h, out_w;
  double hard, soft, gamma;  // factors of the label's term and of each class's in label smoothing; the focal exponent
  bool regions, losses, align_corners;

  __host__ __device__ bool upsampled() const {
    return in_h != out_h || in_w != out_w;
  }
  __host__ __device__ int64_t pixels() const {
    return out_h * out_w;
  }
};

inline SoftmaxParams softmax_params(const Tensor& input, const Tensor& target, double label_smoothing, double gamma,
                                    bool regions, bool losses, bool align_corners) {
  check_softmax(input, target);
  STD_TORCH_CHECK(is_floating(input.scalar_type()), kSoftmaxStatistics,
                  ": expected input of float32, float64, float16 or bfloat16, got ", input.scalar_type());
  const double soft = label_smoothing / static_cast<double>(input.size(1));
  return {input.size(0),       input.size(1), input.size(2), input.size(3), target.size(1), target.size(2),
          1 - label_smoothing, soft,          gamma,         regions,       losses,         align_corners};
}

// Kernels that find no room for their logits in shared memory read them from memory as they compute.
inline Tensor as_staged(const Tensor& logits, bool staged, bool channels_last) {
  return staged ? logits : to_dense(torch::stable::to(logits, compute_type(logits.scalar_type())), channels_last);
}

// What every class brings along: its weight, and in backward the gradients of its sums.
template <typename T>
struct ClassTable {
  const T* weights;  // [C], [1] or none, which is 1
  bool each;
  const T* slopes;  // [N, C, 3] or none

  __device__ T weight(int64_t c) const {
    return weights == nullptr ? T(1) : weights[each ? c : 0];
  }
  __device__ const T* of_sample(int64_t n, int64_t classes) const {
    return slopes == nullptr ? nullptr : slopes + n * classes * kRegionSums;
  }
};

template <typename T>
ClassTable<T> class_table(const std::optional<Tensor>& weights, const Tensor* grad_region) {
  return {weights ? static_cast<const T*>(weights->const_data_ptr()) : nullptr, weights && weights->numel() > 1,
          grad_region == nullptr ? nullptr : static_cast<const T*>(grad_region->const_data_ptr())};
}

// Class weights as the kernels compute.
inline std::optional<Tensor> weights_as(const std::optional<Tensor>& weights, int64_t classes, ScalarType dtype) {
  if (!weights) {
    return std::nullopt;
  }
  weights_of(weights, classes, kSoftmaxStatistics, "class_weights");
  return torch::stable::contiguous(torch::stable::to(*weights, dtype));
}

// The hardware's approximation: differences to the largest logit that it gets wrong by an ulp of theirs add nothing.
__device__ __forceinline__ float exp_below(float x) {
  return __expf(x);
}
__device__ __forceinline__ double exp_below(double x) {
  return exp(x);
}

// (1 - p)^gamma for gamma > 0
template <typename T>
__device__ __forceinline__ T focal_power(T q, double gamma) {
  if (q <= T(0)) {
    return T(0);
  }
  return gamma == 2 ? q * q : exp(log(q) * static_cast<T>(gamma));
}

// Sums over the classes of one pixel.
template <typename T>
struct Softmax {
  T max = 0;       // largest logit
  T sum = 0;       // of exp(x - max)
  T dot = 0;       // of exp(x - max) times the slope of the class's sum of probabilities
  T smoothed = 0;  // of weight * (x - max)
  T weights = 0;
};

// What a pixel's class needs for its probability and its gradient:
// exp(x - max) * (slope * inverse + shift) - smoothing * weight, and extra at the label.
template <typename T>
struct __align__(sizeof(T) == 4 ? 16 : 32) PixelSlopes {
  T max, inverse, shift, extra;
};

// How threads share the classes of their pixels: thread `group` of `groups` takes every groups-th class.
template <typename T>
struct Team {
  int pixel, pixels, group, groups;
  T* scratch;  // [kThreads], shared

  // Of a tile's first `count` pixels; where threads wait for each other, all do.
  __device__ __forceinline__ bool takes_part(int count) const {
    return groups > 1 || pixel < count;
  }
  // All values of a pixel together, in a fixed order.
  template <typename F>
  __device__ __forceinline__ T combine(T value, const F& f) const {
    if (groups == 1) {
      return value;
    }
    scratch[threadIdx.x] = value;
    __syncthreads();
    T all = scratch[pixel];
    for (int g = 1; g < groups; ++g) {
      all = f(all, scratch[g * pixels + pixel]);
    }
    __syncthreads();
    return all;
  }
};

// logits(c, x) gives class c of kPixels pixels.
template <int kPixels, typename T, typename Logits>
__device__ __forceinline__ void scan_classes(const SoftmaxParams& p, const ClassTable<T>& table, const T* slopes,
                                             const Team<T>& team, const Logits& logits, Softmax<T> (&found)[kPixels]) {
  constexpr int kUnroll = sizeof(T) == 4 ? 4 / kPixels : 1;
  const int classes = static_cast<int>(p.classes);
#pragma unroll
  for (int k = 0; k < kPixels; ++k) {
    found[k].max = -INFINITY;
  }
#pragma unroll kUnroll
  for (int c = team.group; c < classes; c += team.groups) {
    T x[kPixels];
    logits(c, x);
#pragma unroll
    for (int k = 0; k < kPixels; ++k) {
      found[k].max = x[k] > found[k].max ? x[k] : found[k].max;
    }
  }
#pragma unroll
  for (int k = 0; k < kPixels; ++k) {
    found[k].max = team.combine(found[k].max, [](T a, T b) { return b > a ? b : a; });
  }
  const bool smoothed = p.soft != 0;
#pragma unroll kUnroll
  for (int c = team.group; c < classes; c += team.groups) {
    T x[kPixels];
    logits(c, x);
    const T slope = slopes == nullptr ? T(0) : slopes[c * kRegionSums + 1];
    const T weight = smoothed ? table.weight(c) : T(0);
#pragma unroll
    for (int k = 0; k < kPixels; ++k) {
      const T e = exp_below(x[k] - found[k].max);
      found[k].sum += e;
      found[k].dot += e * slope;
      if (smoothed) {
        found[k].smoothed += weight * (x[k] - found[k].max);
        found[k].weights += weight;
      }
    }
  }
  const auto add = [](T a, T b) { return a + b; };
#pragma unroll
  for (int k = 0; k < kPixels; ++k) {
    found[k].sum = team.combine(found[k].sum, add);
    if (slopes != nullptr) {
      found[k].dot = team.combine(found[k].dot, add);
    }
    if (smoothed) {
      found[k].smoothed = team.combine(found[k].smoothed, add);
      found[k].weights = team.combine(found[k].weights, add);
    }
  }
}

// A pixel's label: ignored (-1), a class, or none (C), which makes all of the pixel NaN.
__device__ __forceinline__ int pixel_label(const SoftmaxParams& p, const LabelBins& labels, int64_t pixel) {
  const int64_t bin = labels.bin(pixel);
  return bin == p.classes ? -1 : static_cast<int>(min(bin, p.classes));
}

// `shift` is the label's logit less the largest, `weight` the label's; both NaN where the label is no class.
template <typename T>
__device__ __forceinline__ T pixel_loss(const SoftmaxParams& p, const Softmax<T>& s, T shift, T weight) {
  const T log_sum = log(s.sum);
  T loss = weight * static_cast<T>(p.hard) * (log_sum - shift);
  if (p.gamma != 0) {
    loss *= focal_power(1 - exp_below(shift) / s.sum, p.gamma);
  }
  return p.soft != 0 ? loss + static_cast<T>(p.soft) * (s.weights * log_sum - s.smoothed) : loss;
}

// `intersection` is the slope of the label's sum of p * t, `upstream` the gradient that reaches the loss.
template <typename T>
__device__ __forceinline__ PixelSlopes<T> pixel_slopes(const SoftmaxParams& p, const Softmax<T>& s, T shift, T weight,
                                                       T intersection, T upstream, T& smoothing) {
  const T inverse = isnan(shift) ? shift : 1 / s.sum;
  const T probability = exp_below(shift) * inverse;
  T slope = weight * static_cast<T>(p.hard) * upstream;
  if (p.gamma != 0) {
    const T q = 1 - probability;
    const T factor = focal_power(q, p.gamma);
    const T full = factor + static_cast<T>(p.gamma) * (log(s.sum) - shift) * probability * (factor / q);
    slope *= q <= T(0) ? T(0) : full;
  }
  smoothing = static_cast<T>(p.soft) * upstream;
  const T inside = probability * intersection;
  return {s.max, inverse, (slope + smoothing * s.weights - s.dot * inverse - inside) * inverse, inside - slope};
}

template <typename T>
__device__ __forceinline__ T class_gradient(const PixelSlopes<T>& pixel, T x, T slope, T smoothed, bool own) {
  const T grad = exp_below(x - pixel.max) * (slope * pixel.inverse + pixel.shift) - smoothed;
  return own ? grad + pixel.extra : grad;
}

}  // namespace
}  // namespace segkernels
