// Kernels of the losses on sigmoid probabilities on the GPU; sigmoid_statistics.cu launches them.
//
// Logits of the labels' size are read four at a time and should reach 80% of the bandwidth in both directions.
// Upsampled ones are blended as they are read: a thread goes down a column of the outputs between two source rows.
#pragma once

#include "../common/sigmoid_check.h"
#include "interval_grid.cuh"

namespace segkernels {
namespace {

struct SigmoidParams {
  int64_t batch, channels, pixels, width;  // of the target
  double negative, gamma;
  IgnoredTarget ignored;
  bool min_intersection, losses;

  __host__ __device__ int64_t planes() const {
    return batch * channels;
  }
};

// Weights of one channel's pixel loss: of the terms t and 1 - t.
template <typename T>
struct PixelWeights {
  T positive, negative;
};

// Derivatives by p * t (or min), p and the pixel loss.
template <typename T>
struct PlaneGradient {
  T intersection, probability, loss;

  __device__ PlaneGradient(const double* region, const double* pixel, int64_t plane)
      : intersection(static_cast<T>(region[plane * kSigmoidRegion])),
        probability(static_cast<T>(region[plane * kSigmoidRegion + 1])),
        loss(static_cast<T>(pixel[plane * kSigmoidPixel])) {}
};

template <typename T>
struct SigmoidPixel {
  T p, q, error, cross_entropy;  // q: 1 - p; error: p(1 - t) + (1 - p)t

  // softplus(x) = max(x, 0) + log(1 + exp(-|x|)) is stable for any logit.
  __device__ __forceinline__ SigmoidPixel(T x, T t, const PixelWeights<T>& w) {
    const T e = exp(-fabs(x));
    const T r = 1 / (1 + e);
    p = x < 0 ? e * r : r;
    q = x < 0 ? r : e * r;
    const T positive = t * w.positive, negative = (1 - t) * w.negative;
    error = p * (1 - t) + q * t;
    cross_entropy = log1p(e) * (positive + negative) + (x > 0 ? negative * x : -positive * x);
  }
};

template <typename T>
__device__ __forceinline__ T power(T error, double gamma) {
  return gamma == 2 ? error * error : exp(log(error) * static_cast<T>(gamma));
}

// Adds a pixel to sums of p * t, p, t, the losses and the pixels; its loss.
template <typename T>
__device__ __forceinline__ T add_pixel(const SigmoidParams& p, T x, T t, const PixelWeights<T>& w, T (&sums)[5]) {
  const SigmoidPixel<T> pixel(x, t, w);
  const T loss = p.gamma == 0 ? pixel.cross_entropy : power(pixel.error, p.gamma) * pixel.cross_entropy;
  sums[0] += p.min_intersection ? (pixel.p < t ? pixel.p : t) : pixel.p * t;
  sums[1] += pixel.p;
  sums[2] += t;
  sums[3] += loss;
  sums[4] += 1;
  return loss;
}

// `scale` is the gradient of the pixel's entry in the map of losses.
template <typename T>
__device__ __forceinline__ T pixel_gradient(const SigmoidParams& p, T x, T t, const PixelWeights<T>& w,
                                            const PlaneGradient<T>& grad, T scale) {
  const SigmoidPixel<T> pixel(x, t, w);
  const T dp = pixel.p * pixel.q;
  T slope = (1 - t) * pixel.p * w.negative - t * pixel.q * w.positive;
  if (p.gamma != 0) {
    // d error / dx over the error; both vanish together.
    constexpr T tiny = sizeof(T) == 4 ? T(1.17549435e-38) : T(2.2250738585072014e-308);
    const T change = (1 - t - t) * dp / (pixel.error < tiny ? tiny : pixel.error);
    slope = power(pixel.error, p.gamma) * (slope + change * pixel.cross_entropy * static_cast<T>(p.gamma));
  }
  T inside = t;
  if (p.min_intersection) {
    inside = pixel.p < t ? T(1) : pixel.p > t ? T(0) : T(0.5);
  }
  return slope * (grad.loss + scale) + dp * (inside * grad.intersection + grad.probability);
}

// Logits of any dtype as T.
template <typename T>
__device__ __forceinline__ void load_logits(const View& view, int64_t offset, int count, T (&x)[kFour]) {
  with_logit_type<T>(view.dtype, [&](auto type) {
    const Four<decltype(type)> four = load_four<decltype(type)>(view, offset, count);
#pragma unroll
    for (int k = 0; k < kFour; ++k) {
      x[k] = static_cast<T>(four.values[k]);
    }
  });
}

// Hands the block's sums over; sums[3] and sums[4] are those of pixels.
template <typename T>
__device__ __forceinline__ void store_pieces(const T (&sums)[5], int64_t place, double* region, double* pixel) {
  double totals[5];
#pragma unroll
  for (int k = 0; k < 5; ++k) {
    totals[k] = static_cast<double>(sums[k]);
  }
  block_sums(totals);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int k = 0; k < 5; ++k) {
      (k < 3 ? region[place * kSigmoidRegion + k] : pixel[place * kSigmoidPixel + k - 3]) = totals[k];
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_fwd_kernel(SigmoidParams p, int64_t chunks, View input, View target, Weights positive,
                       double* region,  // [N, C, chunks, 3]
                       double* pixel,   // [N, C, chunks, 2]
                       View losses) {   // [N, C, H, W]
  for (int64_t item = blockIdx.x; item < p.planes() * chunks; item += gridDim.x) {
    const Chunk chunk(item, p.channels, p.pixels, chunks);
    const PixelWeights<T> weights{static_cast<T>(positive.at(chunk.c)), static_cast<T>(p.negative)};
    T sums[5] = {};
    for (int64_t i = chunk.begin + threadIdx.x * kFour; i < chunk.end; i += kThreads * kFour) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kFour), chunk.end - i));
      T x[kFour], targets[kFour];
      bool valid[kFour];
      load_logits(input, input.offset(chunk.n, chunk.c, i), count, x);
      load_targets(target, p.ignored, target.offset(chunk.n, chunk.c, i), count, targets, valid);
      Four<T> every{};
#pragma unroll
      for (int k = 0; k < kFour; ++k) {
        if (valid[k]) {
          every.values[k] = add_pixel(p, x[k], targets[k], weights, sums);
        }
      }
      if (p.losses) {
        store_four(every, losses, losses.offset(chunk.n, chunk.c, i), count);
      }
    }
    store_pieces(sums, (chunk.n * p.channels + chunk.c) * chunks + chunk.number, region, pixel);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    sigmoid_bwd_kernel(SigmoidParams p, int64_t chunks, View input, View target, Weights positive,
                       const double* grad_region,  // [N, C, 3]
                       const double* grad_pixel,   // [N, C, 2]
                       View grad_losses,           // [N, C, H, W]
                       View output) {
  for (int64_t item = blockIdx.x; item < p.planes() * chunks; item += gridDim.x) {
    const Chunk chunk(item, p.channels, p.pixels, chunks);
    const PixelWeights<T> weights{static_cast<T>(positive.at(chunk.c)), static_cast<T>(p.negative)};
    const PlaneGradient<T> grad(grad_region, grad_pixel, chunk.n * p.channels + chunk.c);
    for (int64_t i = chunk.begin + threadIdx.x * kFour; i < chunk.end; i += kThreads * kFour) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kFour), chunk.end - i));
      T x[kFour], targets[kFour];
      bool valid[kFour];
      load_logits(input, input.offset(chunk.n, chunk.c, i), count, x);
      load_targets(target, p.ignored, target.offset(chunk.n, chunk.c, i), count, targets, valid);
      Four<T> scales{};
      if (p.losses) {
        scales = load_four<T>(grad_losses, grad_losses.offset(chunk.n, chunk.c, i), count);
      }
#pragma unroll
      for (int k = 0; k < kFour; ++k) {
        x[k] = valid[k] ? pixel_gradient(p, x[k], targets[k], weights, grad, scales.values[k]) : T(0);
      }
      with_logit_type<T>(output.dtype, [&](auto type) {
        Four<decltype(type)> grads;
#pragma unroll
        for (int k = 0; k < kFour; ++k) {
          grads.values[k] = static_cast<decltype(type)>(x[k]);
        }
        store_four(grads, output, output.offset(chunk.n, chunk.c, i), count);
      });
    }
  }
}

constexpr int kMaxIntervals = kThreads;  // of a block

// What one block of an upsampled plane works on: a row of intervals, whose outputs are rows [top, bottom).
struct ColumnWalk {
  int top, bottom;
  const int* begin;  // [width + 1], shared

  template <typename T>
  __device__ ColumnWalk(const IntervalGrid<T>& grid, const IntervalPlace& place, int* columns)
      : top(first_output(grid.rows, place.row)), bottom(first_output(grid.rows, place.row + 1)), begin(columns) {
    find_columns(grid, place, columns);
    __syncthreads();
  }
};

// One output column of a row of intervals: f(offset of the pixel, share of the lower row, logit) down its outputs.
template <typename T, typename F>
__device__ __forceinline__ void walk_column(const IntervalGrid<T>& grid, const IntervalPlace& place,
                                            const ColumnWalk& walk, const View& input, int64_t n, int64_t c, int x,
                                            T weight, const F& f) {
  const int64_t left = place.column + interval_of(walk.begin, place.width, x);
  const int64_t right = min(left + 1, grid.columns.in_size - 1);
  const int64_t below = min(place.row + 1, grid.rows.in_size - 1);
  const int64_t width = grid.columns.in_size;
  T corners[kFour];
  with_logit_type<T>(input.dtype, [&](auto type) {
    const auto* const data = static_cast<const decltype(type)*>(input.data);
    corners[0] = static_cast<T>(data[input.offset(n, c, place.row * width + left)]);
    corners[1] = static_cast<T>(data[input.offset(n, c, place.row * width + right)]);
    corners[2] = static_cast<T>(data[input.offset(n, c, below * width + left)]);
    corners[3] = static_cast<T>(data[input.offset(n, c, below * width + right)]);
  });
  const T upper = blend(corners[0], corners[1], weight);
  const T step = blend(corners[2], corners[3], weight) - upper;
  for (int y = walk.top; y < walk.bottom; ++y) {
    const T row_weight = high_weight(grid.rows, y);
    f(int64_t{y} * grid.columns.out_size + x, row_weight, fma(row_weight, step, upper));
  }
}

// One target, which must not be read as one of four.
template <typename T>
__device__ __forceinline__ bool load_target(const View& target, const IgnoredTarget& ignored, int64_t offset, T& t) {
  T targets[kFour];
  bool valid[kFour];
  load_targets(target, ignored, offset, 1, targets, valid);
  t = targets[0];
  return valid[0];
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    sigmoid_upsampled_fwd_kernel(SigmoidParams p, IntervalGrid<T> grid, View input, View target, Weights positive,
                                 double* region,  // [N, C, h * chunks, 3]
                                 double* pixel,   // [N, C, h * chunks, 2]
                                 T* losses) {     // [N, C, H, W]
  __shared__ int begin[kMaxIntervals + 1];
  for (int64_t item = blockIdx.x; item < p.planes() * grid.items(); item += gridDim.x) {
    const IntervalPlace place(grid, item);
    const int64_t n = place.n / p.channels;
    const int64_t c = place.n - n * p.channels;
    const PixelWeights<T> weights{static_cast<T>(positive.at(c)), static_cast<T>(p.negative)};
    const ColumnWalk walk(grid, place, begin);
    T sums[5] = {};
    for (int x = begin[0] + static_cast<int>(threadIdx.x); x < begin[place.width]; x += kThreads) {
      walk_column(grid, place, walk, input, n, c, x, high_weight(grid.columns, x), [&](int64_t at, T, T logit) {
        T t;
        T loss = 0;
        if (load_target(target, p.ignored, target.offset(n, c, at), t)) {
          loss = add_pixel(p, logit, t, weights, sums);
        }
        if (p.losses) {
          losses[place.n * p.pixels + at] = loss;
        }
      });
    }
    store_pieces(sums, item, region, pixel);
  }
}

// Gradients of the source pixels around a block's intervals, from this block alone: first down the columns of outputs,
// then along them.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    sigmoid_upsampled_bwd_kernel(SigmoidParams p, IntervalGrid<T> grid, View input, View target, Weights positive,
                                 const double* grad_region,  // [N, C, 3]
                                 const double* grad_pixel,   // [N, C, 2]
                                 const T* grad_losses,       // [N, C, H, W]
                                 T* partial) {               // [N, h, chunks, 2, width + 1, C]
  __shared__ int begin[kMaxIntervals + 1];
  __shared__ T weight[kThreads], down[2][kThreads], nodes[2 * (kMaxIntervals + 1)];
  for (int64_t item = blockIdx.x; item < p.planes() * grid.items(); item += gridDim.x) {
    const IntervalPlace place(grid, item);
    const int64_t n = place.n / p.channels;
    const int64_t c = place.n - n * p.channels;
    const PixelWeights<T> weights{static_cast<T>(positive.at(c)), static_cast<T>(p.negative)};
    const PlaneGradient<T> grad(grad_region, grad_pixel, place.n);
    const ColumnWalk walk(grid, place, begin);
    const int ends = 2 * (place.width + 1);
    for (int i = threadIdx.x; i < ends; i += kThreads) {
      nodes[i] = 0;
    }
    const int right = begin[place.width];
    for (int start = begin[0]; start < right; start += kThreads) {
      const int x = start + static_cast<int>(threadIdx.x);
      if (x < right) {
        const T share = high_weight(grid.columns, x);
        T all = 0, low = 0;
        walk_column(grid, place, walk, input, n, c, x, share, [&](int64_t at, T row_weight, T logit) {
          T t;
          if (load_target(target, p.ignored, target.offset(n, c, at), t)) {
            const T scale = p.losses ? grad_losses[place.n * p.pixels + at] : T(0);
            const T slope = pixel_gradient(p, logit, t, weights, grad, scale);
            all += slope;
            low += slope * row_weight;
          }
        });
        weight[threadIdx.x] = share;
        down[0][threadIdx.x] = all - low;
        down[1][threadIdx.x] = low;
      }
      __syncthreads();
      for (int i = threadIdx.x; i < ends; i += kThreads) {
        const int half = i / (place.width + 1);
        const int node = i % (place.width + 1);
        const T* const sums = down[half] - start;
        T total = nodes[i];
        const int first = node > 0 ? begin[node - 1] : begin[0];
        const int end = begin[min(node + 1, place.width)];
        for (int column = max(first, start); column < min(end, start + kThreads); ++column) {
          const T high = weight[column - start];
          total += sums[column] * (column < begin[node] ? high : 1 - high);
        }
        nodes[i] = total;
      }
      __syncthreads();
    }
    const int64_t piece = n * grid.items() + item - place.n * grid.items();
    for (int i = threadIdx.x; i < ends; i += kThreads) {
      const int half = i / (place.width + 1);
      const int node = i % (place.width + 1);
      partial[((piece * 2 + half) * (grid.width + 1) + node) * p.channels + c] = nodes[i];
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace segkernels
