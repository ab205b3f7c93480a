// Kernels of Dice + binary cross entropy on the GPU; dice_bce_loss.cu launches them.
#pragma once

#include <cmath>

#include "../common/dice_bce_check.h"
#include "../common/loss.cuh"

namespace segkernels {
namespace {

constexpr int64_t kCoefficients = 4;  // of a plane: its Dice term in a map, slopes of bce, intersection, cardinality

struct Params {
  int64_t batch, channels, pixels, chunks;
  double dice_weight, bce_weight;
  IgnoredTarget ignored;
  bool from_logits;
  bool soft_target;  // the intersection is sum min(p, t)
  DiceParams dice;

  __host__ __device__ int64_t planes() const {
    return batch * channels;
  }
};

// softplus(x) = max(x, 0) + log(1 + exp(-|x|)) is stable for any logit. Probabilities have the limits of torch's
// binary_cross_entropy: logarithms of at least -100.
template <typename T>
__device__ __forceinline__ void pixel_loss(bool from_logits, T x, T t, T weighted, T& p, T& bce) {
  const T rest = 1 - t;
  if (from_logits) {
    const T e = exp(-fabs(x));
    const T r = 1 / (1 + e);
    p = x < 0 ? e * r : r;
    bce = log1p(e) * (rest + weighted) + (x > 0 ? rest * x : -weighted * x);
  } else {
    const T positive = log(x);
    const T negative = log(1 - x);
    p = x;
    bce = -rest * (negative < -100 ? T(-100) : negative) - weighted * (positive < -100 ? T(-100) : positive);
  }
}

// p, dp/dx and dbce/dx; 1 - p is computed without cancellation.
template <typename T>
__device__ __forceinline__ void pixel_slopes(bool from_logits, T x, T t, T weighted, T& p, T& dp, T& dbce) {
  if (from_logits) {
    const T e = exp(-fabs(x));
    const T r = 1 / (1 + e);
    const T er = e * r;
    p = x < 0 ? er : r;
    dp = er * r;
    dbce = (1 - t) * p - weighted * (x < 0 ? r : er);
  } else {
    p = x;
    dp = 1;
    const T spread = x * (1 - x);
    dbce = ((1 - t) * x - weighted * (1 - x)) / (spread < T(1e-12) ? T(1e-12) : spread);
  }
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) dice_bce_fwd_kernel(Params p, View input, View target, Weights pos_weight,
                                                                double* partial) {  // [N, C, chunks, 5]
  using T = accumulate_t<scalar_t>;
  for (int64_t item = blockIdx.x; item < p.planes() * p.chunks; item += gridDim.x) {
    const Chunk chunk(item, p.channels, p.pixels, p.chunks);
    const T positive = static_cast<T>(pos_weight.at(chunk.c));
    T sums[kStatistics] = {};
    for (int64_t i = chunk.begin + threadIdx.x * kFour; i < chunk.end; i += kThreads * kFour) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kFour), chunk.end - i));
      const Four<scalar_t> logits = load_four<scalar_t>(input, input.offset(chunk.n, chunk.c, i), count);
      T targets[kFour];
      bool valid[kFour];
      load_targets(target, p.ignored, target.offset(chunk.n, chunk.c, i), count, targets, valid);
#pragma unroll
      for (int k = 0; k < kFour; ++k) {
        const T t = targets[k];
        T probability, bce;
        pixel_loss(p.from_logits, static_cast<T>(logits.values[k]), t, t * positive, probability, bce);
        if (valid[k]) {
          sums[0] += p.soft_target ? (probability < t ? probability : t) : probability * t;
          sums[1] += probability;
          sums[2] += t;
          sums[3] += bce;
          sums[4] += 1;
        }
      }
    }
    double totals[kStatistics];
#pragma unroll
    for (int k = 0; k < kStatistics; ++k) {
      totals[k] = static_cast<double>(sums[k]);
    }
    block_sums(totals);
    const int64_t plane = chunk.n * p.channels + chunk.c;
    store_sums(totals, partial + (plane * p.chunks + chunk.number) * kStatistics);
  }
}

// Sum of a gradient map's valid pixels, by chunk: what scales the Dice term in reduction 'none'.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) grad_sums_kernel(Params p, View grad, View target,
                                                             double* partial) {  // [N, C, chunks]
  for (int64_t item = blockIdx.x; item < p.planes() * p.chunks; item += gridDim.x) {
    const Chunk chunk(item, p.channels, p.pixels, p.chunks);
    double total[1] = {};
    for (int64_t i = chunk.begin + threadIdx.x * kFour; i < chunk.end; i += kThreads * kFour) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kFour), chunk.end - i));
      const Four<scalar_t> grads = load_four<scalar_t>(grad, grad.offset(chunk.n, chunk.c, i), count);
      accumulate_t<scalar_t> targets[kFour];
      bool valid[kFour];
      load_targets(target, p.ignored, target.offset(chunk.n, chunk.c, i), count, targets, valid);
      for (int k = 0; k < kFour; ++k) {
        total[0] += valid[k] ? static_cast<double>(grads.values[k]) : 0.0;
      }
    }
    block_sums(total);
    if (threadIdx.x == 0) {
      partial[(chunk.n * p.channels + chunk.c) * p.chunks + chunk.number] = total[0];
    }
  }
}

__device__ DiceSums pooled_sums(const Params& p, const double* statistics, int64_t plane) {
  const int64_t c = plane % p.channels;
  DiceSums sums{};
  for (int64_t i = p.dice.batch_dice ? c : plane; i < p.planes(); i += p.channels) {
    const double* s = statistics + i * kStatistics;
    sums.intersection += s[0];
    sums.cardinality += s[1] + s[2];
    sums.target += s[2];
    sums.valid += s[4];
    if (!p.dice.batch_dice) {
      break;
    }
  }
  return sums;
}

// What is left once the sums are there, O(N*C), by one block: the reduced loss, and the coefficients of every plane for
// the kernels that write maps and gradients. csrc/common/dice_bce_loss.h says the same.
__global__ void __launch_bounds__(kThreads)
    finish_kernel(Params p, const double* statistics,  // [N, C, 5]
                  Weights class_weights, Weights upstream,
                  const double* upstream_sums,  // [N, C] or none: upstream is a scalar
                  double* coefficients,         // [N, C, 4]
                  void* loss,                   // [] or none
                  bool float64_loss) {
  const bool mean = p.dice.reduction == Reduction::kMean;
  const bool monai = p.dice.style == DiceStyle::kMonai;
  // A single channel is the foreground: nothing to leave out, and nothing to weigh for MONAI.
  const int64_t first = p.dice.include_background || p.channels == 1 ? 0 : 1;
  double totals[3] = {};  // class weights, cross entropy, valid pixels
  for (int64_t c = first + threadIdx.x; c < p.channels; c += kThreads) {
    totals[0] += monai ? 1.0 : class_weights.at(c);
  }
  for (int64_t i = threadIdx.x; i < p.planes(); i += kThreads) {
    totals[1] += class_weights.at(i % p.channels) * statistics[i * kStatistics + 3];
    totals[2] += statistics[i * kStatistics + 4];
  }
  block_sums(totals);
  const double total_weight = totals[0] * (p.dice.batch_dice ? 1.0 : static_cast<double>(p.batch));
  const double count = totals[2];
  const double bce = p.bce_weight == 0 || count == 0 ? 0.0 : p.bce_weight / (mean ? count : 1.0);

  double dice_total[1] = {};
  for (int64_t i = threadIdx.x; i < p.planes(); i += kThreads) {
    const int64_t c = i % p.channels;
    DiceGroup group;
    if (c >= first) {
      group = dice_group(p.dice, pooled_sums(p, statistics, i));
      group.weight = monai && p.channels == 1 ? 1.0 : class_weights.at(c);
      if (mean) {
        group.weight = total_weight == 0 ? 0.0 : group.weight / total_weight;
      }
    }
    if (!p.dice.batch_dice || i < p.channels) {
      dice_total[0] += group.weight * group.loss;
    }
    double dice_upstream = upstream.at(0);
    if (upstream_sums != nullptr) {
      dice_upstream = 0;
      for (int64_t j = p.dice.batch_dice ? c : i; j < (p.dice.batch_dice ? p.planes() : i + 1); j += p.channels) {
        dice_upstream += upstream_sums[j];
      }
    }
    const double bce_upstream = upstream_sums == nullptr ? upstream.at(0) : 1.0;
    const double dice = p.dice_weight == 0 ? 0.0 : dice_upstream * p.dice_weight * group.weight;
    double* to = coefficients + i * kCoefficients;
    to[0] = p.dice_weight == 0 ? 0.0 : p.dice_weight * group.weight * group.loss;
    to[1] = bce == 0 ? 0.0 : bce_upstream * bce * class_weights.at(c);
    to[2] = dice == 0 ? 0.0 : dice * group.d_intersection;
    to[3] = dice == 0 ? 0.0 : dice * group.d_cardinality;
  }
  block_sums(dice_total);
  if (loss != nullptr && threadIdx.x == 0) {
    // A term without weight is left out, so that it cannot make NaN of 0 * inf.
    double value = bce == 0 ? 0.0 : bce * totals[1];
    value += count == 0 || p.dice_weight == 0 ? 0.0 : p.dice_weight * dice_total[0];
    if (float64_loss) {
      *static_cast<double*>(loss) = value;
    } else {
      *static_cast<float*>(loss) = static_cast<float>(value);
    }
  }
}

// Reduction 'none': the loss of every pixel.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) dice_bce_map_kernel(Params p, View input, View target, Weights pos_weight,
                                                                const double* coefficients, View output) {
  using T = accumulate_t<scalar_t>;
  for (int64_t item = blockIdx.x; item < p.planes() * p.chunks; item += gridDim.x) {
    const Chunk chunk(item, p.channels, p.pixels, p.chunks);
    const T positive = static_cast<T>(pos_weight.at(chunk.c));
    const double* plane = coefficients + (chunk.n * p.channels + chunk.c) * kCoefficients;
    const T dice = static_cast<T>(plane[0]);
    const T scale = static_cast<T>(plane[1]);
    for (int64_t i = chunk.begin + threadIdx.x * kFour; i < chunk.end; i += kThreads * kFour) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kFour), chunk.end - i));
      const Four<scalar_t> logits = load_four<scalar_t>(input, input.offset(chunk.n, chunk.c, i), count);
      T targets[kFour];
      bool valid[kFour];
      load_targets(target, p.ignored, target.offset(chunk.n, chunk.c, i), count, targets, valid);
      Four<T> losses{};
#pragma unroll
      for (int k = 0; k < kFour; ++k) {
        T probability, bce;
        pixel_loss(p.from_logits, static_cast<T>(logits.values[k]), targets[k], targets[k] * positive, probability,
                   bce);
        losses.values[k] = valid[k] ? bce * scale + dice : T(0);
      }
      store_four(losses, output, output.offset(chunk.n, chunk.c, i), count);
    }
  }
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    dice_bce_bwd_kernel(Params p, View input, View target, Weights pos_weight, const double* coefficients,
                        View grad_map,  // [N, C, H, W], read where `map`
                        bool map, View output) {
  using T = accumulate_t<scalar_t>;
  for (int64_t item = blockIdx.x; item < p.planes() * p.chunks; item += gridDim.x) {
    const Chunk chunk(item, p.channels, p.pixels, p.chunks);
    const T positive = static_cast<T>(pos_weight.at(chunk.c));
    const double* plane = coefficients + (chunk.n * p.channels + chunk.c) * kCoefficients;
    const T bce = static_cast<T>(plane[1]);
    const T intersection = static_cast<T>(plane[2]);
    const T cardinality = static_cast<T>(plane[3]);
    for (int64_t i = chunk.begin + threadIdx.x * kFour; i < chunk.end; i += kThreads * kFour) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kFour), chunk.end - i));
      const Four<scalar_t> logits = load_four<scalar_t>(input, input.offset(chunk.n, chunk.c, i), count);
      T targets[kFour];
      bool valid[kFour];
      load_targets(target, p.ignored, target.offset(chunk.n, chunk.c, i), count, targets, valid);
      Four<T> scales{};
      if (map) {
        scales = load_four<T>(grad_map, grad_map.offset(chunk.n, chunk.c, i), count);
      }
      Four<scalar_t> grads{};
#pragma unroll
      for (int k = 0; k < kFour; ++k) {
        const T t = targets[k];
        T probability, dp, dbce;
        pixel_slopes(p.from_logits, static_cast<T>(logits.values[k]), t, t * positive, probability, dp, dbce);
        T inside = t;
        if (p.soft_target) {
          inside = probability < t ? T(1) : (probability > t ? T(0) : T(0.5));
        }
        const T scale = map ? scales.values[k] * bce : bce;
        const T grad = dbce * scale + dp * (inside * intersection + cardinality);
        grads.values[k] = static_cast<scalar_t>(valid[k] ? grad : T(0));
      }
      store_four(grads, output, output.offset(chunk.n, chunk.c, i), count);
    }
  }
}

}  // namespace
}  // namespace segkernels
