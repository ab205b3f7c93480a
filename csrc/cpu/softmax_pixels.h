// What a block of pixels computes once the exponentials of its logits are summed, whatever the layout of the logits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/label_bins.h"
#include "../common/softmax_statistics.h"
#include "../common/vecmath.h"

namespace segkernels {
namespace {

constexpr int64_t kPixels = 256;  // of a block

// Per-class values as T, with zeros behind them for ignored pixels (bin C).
template <typename T>
struct ClassValues {
  std::vector<T> weight;        // [C + 1]
  std::vector<T> probability;   // [padded C] slope of the sum of p, or empty
  std::vector<T> intersection;  // [C + 1] slope of the sum of p * t
  std::vector<T> smoothing;     // [padded C] weights as the smoothing term reads them
};

template <typename T>
ClassValues<T> class_values(const SoftmaxParams& p, const double* grad_region) {
  ClassValues<T> values;
  values.weight.assign(p.weights.begin(), p.weights.end());
  values.smoothing = values.weight;
  values.smoothing.resize(padded(p.classes));
  values.weight.push_back(T(0));
  if (grad_region == nullptr) {
    return values;
  }
  values.probability.resize(padded(p.classes));
  values.intersection.resize(p.classes + 1);
  for (int64_t c = 0; c < p.classes; ++c) {
    values.intersection[c] = static_cast<T>(grad_region[c * kRegionSums]);
    values.probability[c] = static_cast<T>(grad_region[c * kRegionSums + 1]);
  }
  return values;
}

// Largest bin; then bins are at most `classes`.
template <typename T>
SEGKERNELS_CLONES int32_t weigh_labels(int64_t count, int32_t classes, const T* weights, int32_t* bins, T* valid,
                                       T* weight) {
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    most = std::max(most, bins[i]);
  }
  for (int64_t i = 0; i < count; ++i) {
    bins[i] = std::min(bins[i], classes);
    valid[i] = bins[i] < classes ? T(1) : T(0);
  }
  for (int64_t i = 0; i < count; ++i) {
    weight[i] = weights[bins[i]];
  }
  return most;
}

template <typename T>
struct PixelBlock {
  int64_t count;
  bool masked;   // some pixel is ignored, or padding
  bool outside;  // some label is no class
  int32_t bins[kPixels + kBlockLanes];
  alignas(32) T valid[kPixels];
  alignas(32) T weight[kPixels];       // of the label
  alignas(32) T max[kPixels];          // largest logit
  alignas(32) T sum[kPixels];          // of exp(x - max)
  alignas(32) T label_shift[kPixels];  // x - max of the label
  alignas(32) T label_exp[kPixels];    // and its exponential
  alignas(32) T smoothed[kPixels];     // sum of weight * (x - max)
  alignas(32) T dot[kPixels];          // sum of exp(x - max) * slope of p
  alignas(32) T inverse[kPixels];      // 1 / sum, 0 where ignored
  alignas(32) T probability[kPixels];  // of the label
  alignas(32) T loss[kPixels];
  alignas(32) T upstream[kPixels];  // gradient that reaches the loss
  alignas(32) T shift[kPixels];     // gradient of x: p * (slope + shift) - smoothing * weight, and at the label + extra
  alignas(32) T smoothing[kPixels];
  alignas(32) T extra[kPixels];

  void load(const Labels& labels, int64_t begin, int64_t pixels, int32_t classes, const ClassValues<T>& values) {
    count = pixels;
    labels.bins(begin, count, bins);
    std::fill(bins + count, bins + padded(count), classes);
    const int32_t most = weigh_labels(padded(count), classes, values.weight.data(), bins, valid, weight);
    masked = most >= classes;
    outside = most > classes;
  }
};

// (1 - p)^gamma for gamma > 0
template <typename V>
SEGKERNELS_INLINE V power(V base, double gamma) {
  if (gamma == 2) {
    return base * base;
  }
  return exp_nonpositive(log_finite(base) * static_cast<float>(gamma));
}
SEGKERNELS_INLINE double power(double base, double gamma) {
  return std::pow(base, gamma);
}

template <typename T>
SEGKERNELS_CLONES void pixel_losses(const SoftmaxParams& p, PixelBlock<T>& block) {
  using V = typename Lanes<T>::vector;
  const T hard = static_cast<T>(1 - p.label_smoothing);
  const T soft = static_cast<T>(p.label_smoothing / static_cast<double>(p.classes));
  const T weight_sum = static_cast<T>(p.weight_sum);
  for (int64_t i = 0; i < padded(block.count); i += Lanes<T>::count) {
    const V sum = load_vector<V>(block.sum + i);
    const V valid = load_vector<V>(block.valid + i);
    const V log_sum = log_finite(sum);
    const V inverse = valid / sum;
    const V probability = load_vector<V>(block.label_exp + i) * inverse;
    V loss = load_vector<V>(block.weight + i) * hard * (log_sum - load_vector<V>(block.label_shift + i));
    if (p.gamma != 0) {
      const V q = 1 - probability;
      loss *= power(q < V{} ? V{} : q, p.gamma);
    }
    if (p.label_smoothing != 0) {
      loss += valid * soft * (weight_sum * log_sum - load_vector<V>(block.smoothed + i));
    }
    store_vector(block.inverse + i, inverse);
    store_vector(block.probability + i, probability);
    store_vector(block.loss + i, loss);
  }
}

// The terms of the gradient that are the same for every class of a pixel.
template <typename T>
SEGKERNELS_CLONES void pixel_slopes(const SoftmaxParams& p, const ClassValues<T>& values, PixelBlock<T>& block) {
  using V = typename Lanes<T>::vector;
  const T hard = static_cast<T>(1 - p.label_smoothing);
  const T soft = static_cast<T>(p.label_smoothing / static_cast<double>(p.classes));
  const T weight_sum = static_cast<T>(p.weight_sum);
  const bool regions = !values.probability.empty();
  if (regions) {
    for (int64_t i = 0; i < padded(block.count); ++i) {
      block.extra[i] = values.intersection[block.bins[i]];
    }
  }
  for (int64_t i = 0; i < padded(block.count); i += Lanes<T>::count) {
    const V sum = load_vector<V>(block.sum + i);
    const V valid = load_vector<V>(block.valid + i);
    const V inverse = valid / sum;
    const V probability = load_vector<V>(block.label_exp + i) * inverse;
    const V upstream = valid > V{} ? load_vector<V>(block.upstream + i) : V{};
    V slope = load_vector<V>(block.weight + i) * hard * upstream;
    if (p.gamma != 0) {
      const V q = 1 - probability;
      const V positive = q > V{} ? q : V{} + 1;
      const V cross_entropy = log_finite(sum) - load_vector<V>(block.label_shift + i);
      const V factor = power(positive, p.gamma);
      const V full = factor + static_cast<T>(p.gamma) * cross_entropy * probability * (factor / positive);
      slope *= q <= V{} ? V{} : full;
    }
    const V smoothing = soft * upstream;
    V shift = slope + smoothing * weight_sum;
    V extra = -slope;
    if (regions) {
      const V inside = probability * load_vector<V>(block.extra + i);
      shift -= load_vector<V>(block.dot + i) * inverse + inside;
      extra += inside;
    }
    store_vector(block.inverse + i, inverse);
    store_vector(block.shift + i, shift);
    store_vector(block.smoothing + i, smoothing);
    store_vector(block.extra + i, extra);
  }
}

template <typename T>
SEGKERNELS_CLONES double block_sum(const T* values, int64_t count) {
  using V = typename Lanes<T>::vector;
  V sum{};
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    sum += load_vector<V>(values + i);
  }
  return sum_lanes(sum);
}

// Adds the sums that a class has of its own label's pixels, and those of the sample.
template <typename T>
void add_pixel_sums(const SoftmaxParams& p, const PixelBlock<T>& block, SoftmaxSums& sums) {
  sums.pixel[0] += block_sum(block.loss, padded(block.count));
  sums.pixel[1] += block_sum(block.weight, padded(block.count));
  sums.pixel[2] += block_sum(block.valid, padded(block.count));
  if (p.regions) {
    for (int64_t i = 0; i < block.count; ++i) {
      if (block.bins[i] < p.classes) {
        double* region = sums.region.data() + block.bins[i] * kRegionSums;
        region[0] += static_cast<double>(block.probability[i]);
        region[2] += 1;
      }
    }
  }
}

// The gradients that reach the losses of a block.
template <typename T>
void load_upstream(const SoftmaxParams& p, double grad_pixel, const T* grad_losses, int64_t begin,
                   PixelBlock<T>& block) {
  for (int64_t i = 0; i < padded(block.count); ++i) {
    block.upstream[i] = static_cast<T>(grad_pixel);
  }
  if (p.losses) {
    for (int64_t i = 0; i < block.count; ++i) {
      block.upstream[i] += grad_losses[begin + i];
    }
  }
}

}  // namespace
}  // namespace segkernels
