// Losses on softmax probabilities from logits of the labels' size. A block brings a tile of pixels with all classes
// into shared memory, so that memory is read once however often the kernel goes through the classes: forward should
// reach 80% of the bandwidth, with some 30 instructions a logit, and backward more.
#pragma once

#include <cuda_pipeline.h>

#include "softmax_statistics.cuh"

namespace segkernels {
namespace {

constexpr int64_t kSoftmaxChunk = 1024;    // pixels of one sample that a block sums
constexpr int64_t kTileBytes = 80 * 1024;  // two blocks fit a multiprocessor

// How a sample's pixels are cut up. Tiles are powers of two pixels, fewer where classes are many; where not even eight
// fit, kernels read the logits again from memory.
struct PlaneTiles {
  int64_t chunks;
  int pixels;  // of a tile
  bool staged, channels_last;
  bool wide;  // four pixels are one aligned load

  PlaneTiles(const SoftmaxParams& p, const Tensor& input, bool last, size_t scalar)
      : chunks((p.pixels() + kSoftmaxChunk - 1) / kSoftmaxChunk),
        pixels(kThreads),
        channels_last(last && p.classes > 1) {
    while (pixels > 8 && bytes(p, scalar) > kTileBytes) {
      pixels /= 2;
    }
    staged = bytes(p, scalar) <= kTileBytes;
    pixels = staged ? pixels : kThreads;
    wide = !channels_last && p.pixels() % kFour == 0 && reinterpret_cast<uintptr_t>(input.const_data_ptr()) % 16 == 0;
  }
  // channels_last: an odd number of values a pixel, so that a warp's pixels lie in different banks.
  __host__ __device__ int row(int classes) const {
    return channels_last ? classes | 1 : classes;
  }
  int64_t bytes(const SoftmaxParams& p, size_t scalar) const {
    return static_cast<int64_t>(row(static_cast<int>(p.classes))) * pixels * static_cast<int64_t>(scalar);
  }
  size_t shared(const SoftmaxParams& p, size_t scalar) const {
    return staged ? bytes(p, scalar) : 0;
  }
};

// The logits of a tile, in shared memory or where they are.
template <typename T>
struct TileLogits {
  const T* data;
  int64_t class_step, pixel_step;

  __device__ __forceinline__ T at(int c, int pixel) const {
    return data[c * class_step + pixel * pixel_step];
  }
};

// Where a tile lies in a tensor.
struct TilePlace {
  int64_t start, class_step, pixel_step;
  int classes, count;

  __device__ TilePlace(const SoftmaxParams& p, const PlaneTiles& tiles, int64_t n, int64_t begin, int count_)
      : start(tiles.channels_last ? (n * p.pixels() + begin) * p.classes : n * p.classes * p.pixels() + begin),
        class_step(tiles.channels_last ? 1 : p.pixels()),
        pixel_step(tiles.channels_last ? p.classes : 1),
        classes(static_cast<int>(p.classes)),
        count(count_) {}
};

// f(index in the tile, index in the tensor) for its values, or its groups of four where tiles are wide, in the order of
// the tensor.
template <typename F>
__device__ __forceinline__ void for_each_value(const PlaneTiles& tiles, const TilePlace& place, const F& f) {
  if (tiles.channels_last) {
    for (int i = threadIdx.x; i < place.count * place.classes; i += kThreads) {
      f(i / place.classes * tiles.row(place.classes) + i % place.classes, place.start + i);
    }
    return;
  }
  const int step = tiles.wide ? kFour : 1;
  const int groups = tiles.pixels / step;
  for (int i = threadIdx.x; i < place.classes * groups; i += kThreads) {
    const int c = i / groups, pixel = i % groups * step;
    if (pixel < place.count) {
      f(c * tiles.pixels + pixel, place.start + c * place.class_step + pixel);
    }
  }
}

// Every thread of the block has to come here; those of the tile before are done with it. Without room for a tile the
// logits are T.
template <typename T>
__device__ TileLogits<T> load_tile(const PlaneTiles& tiles, const TilePlace& place, const Logits& input, T* tile) {
  if (!tiles.staged) {
    return {static_cast<const T*>(input.data) + place.start, place.class_step, place.pixel_step};
  }
  with_logit_type<T>(input.dtype, [&](auto type) {
    using scalar_t = decltype(type);
    const scalar_t* const from = static_cast<const scalar_t*>(input.data);
    for_each_value(tiles, place, [&](int to, int64_t at) {
      if (!tiles.wide) {
        tile[to] = static_cast<T>(from[at]);
      } else if constexpr (std::is_same_v<scalar_t, T>) {
#pragma unroll
        for (int k = 0; k < kFour; k += 16 / sizeof(T)) {
          __pipeline_memcpy_async(tile + to + k, from + at + k, 16);
        }
      } else {
        const Four<scalar_t> four = *reinterpret_cast<const Four<scalar_t>*>(from + at);
#pragma unroll
        for (int k = 0; k < kFour; ++k) {
          tile[to + k] = static_cast<T>(four.values[k]);
        }
      }
    });
  });
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  return tiles.channels_last ? TileLogits<T>{tile, 1, tiles.row(place.classes)} : TileLogits<T>{tile, tiles.pixels, 1};
}

template <typename T>
__device__ void store_tile(const PlaneTiles& tiles, const TilePlace& place, const T* tile, const Logits& output) {
  with_logit_type<T>(output.dtype, [&](auto type) {
    using scalar_t = decltype(type);
    scalar_t* const to = static_cast<scalar_t*>(output.data);
    for_each_value(tiles, place, [&](int from, int64_t at) {
      if (!tiles.wide) {
        to[at] = static_cast<scalar_t>(tile[from]);
        return;
      }
      Four<scalar_t> four;
#pragma unroll
      for (int k = 0; k < kFour; ++k) {
        four.values[k] = static_cast<scalar_t>(tile[from + k]);
      }
      *reinterpret_cast<Four<scalar_t>*>(to + at) = four;
    });
  });
}

template <typename T>
__device__ __forceinline__ Team<T> team_of(const PlaneTiles& tiles, T* scratch) {
  const int thread = threadIdx.x;
  return {thread % tiles.pixels, tiles.pixels, thread / tiles.pixels, kThreads / tiles.pixels, scratch};
}

// What a warp needs of a pixel to add up one class over the tile.
template <typename T>
struct TilePixels {
  T max[kThreads], inverse[kThreads];
  int label[kThreads];
};

// A warp per class: sums of p * t, p and t over the tile, added to partial[c * step] or, at first, stored there.
template <typename T>
__device__ void sum_classes(const SoftmaxParams& p, const TileLogits<T>& logits, const TilePixels<T>& pixels, int count,
                            bool first, int64_t step, double* partial) {
  const int lane = threadIdx.x % 32;
  for (int c = threadIdx.x / 32; c < static_cast<int>(p.classes); c += kWarps) {
    T sums[kRegionSums] = {};
#pragma unroll 2
    for (int pixel = lane; pixel < count; pixel += 32) {
      const T e = exp_below(logits.at(c, pixel) - pixels.max[pixel]);
      const int label = pixels.label[pixel];
      const T probability = label < 0 ? T(0) : e * pixels.inverse[pixel];
      sums[1] += probability;
      if (label == c) {
        sums[0] += probability;
        sums[2] += 1;
      }
    }
#pragma unroll
    for (int k = 0; k < kRegionSums; ++k) {
      for (int lanes = 16; lanes > 0; lanes /= 2) {
        sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], lanes);
      }
      if (lane == k) {
        double& to = partial[c * step + k];
        to = (first ? 0.0 : to) + static_cast<double>(sums[k]);
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    softmax_planes_fwd_kernel(SoftmaxParams p, PlaneTiles tiles, LabelBins labels, Logits input, ClassTable<T> table,
                              double* region,  // [N, C, chunks, 3]
                              double* pixel,   // [N, chunks, 3]
                              T* losses) {     // [N, H, W]
  __shared__ T scratch[kThreads];
  __shared__ TilePixels<T> pixels;
  const Team<T> team = team_of(tiles, scratch);
  for (int64_t item = blockIdx.x; item < p.batch * tiles.chunks; item += gridDim.x) {
    const int64_t n = item / tiles.chunks;
    const int64_t begin = (item - n * tiles.chunks) * kSoftmaxChunk;
    const int64_t end = min(begin + kSoftmaxChunk, p.pixels());
    double sums[kPixelSums] = {};
    for (int64_t start = begin; start < end; start += tiles.pixels) {
      const int count = static_cast<int>(min(static_cast<int64_t>(tiles.pixels), end - start));
      const TileLogits<T> logits = load_tile(tiles, TilePlace(p, tiles, n, start, count), input, dynamic_shared<T>());
      const int own = min(team.pixel, count - 1);
      Softmax<T> found[1];
      if (team.takes_part(count)) {
        scan_classes(
            p, table, static_cast<const T*>(nullptr), team, [&](int c, T(&x)[1]) { x[0] = logits.at(c, own); }, found);
      }
      if (team.group == 0 && team.pixel < count) {
        const int label = pixel_label(p, labels, n * p.pixels() + start + own);
        const bool known = label < p.classes;
        T loss = 0;
        if (label >= 0) {
          const T shift = known ? logits.at(label, own) - found[0].max : static_cast<T>(NAN);
          const T weight = known ? table.weight(label) : static_cast<T>(NAN);
          loss = pixel_loss(p, found[0], shift, weight);
          sums[0] += static_cast<double>(loss);
          sums[1] += static_cast<double>(weight);
          sums[2] += 1;
        }
        if (p.losses) {
          losses[n * p.pixels() + start + own] = loss;
        }
        pixels.max[own] = found[0].max;
        pixels.inverse[own] = known ? 1 / found[0].sum : static_cast<T>(NAN);
        pixels.label[own] = label;
      }
      __syncthreads();
      if (p.regions) {
        const int64_t first = (n * p.classes * tiles.chunks + item - n * tiles.chunks) * kRegionSums;
        sum_classes(p, logits, pixels, count, start == begin, tiles.chunks * kRegionSums, region + first);
        __syncthreads();
      }
    }
    block_sums(sums);
    store_sums(sums, pixel + item * kPixelSums);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    softmax_planes_bwd_kernel(SoftmaxParams p, PlaneTiles tiles, LabelBins labels, Logits input, ClassTable<T> table,
                              const T* grad_pixel,   // [N, 3]
                              const T* grad_losses,  // [N, H, W]
                              Logits output) {       // [N, C, H, W]
  __shared__ T scratch[kThreads];
  const Team<T> team = team_of(tiles, scratch);
  T* const tile = dynamic_shared<T>();
  const int classes = static_cast<int>(p.classes);
  const int64_t per_sample = (p.pixels() + tiles.pixels - 1) / tiles.pixels;
  for (int64_t item = blockIdx.x; item < p.batch * per_sample; item += gridDim.x) {
    const int64_t n = item / per_sample;
    const int64_t start = (item - n * per_sample) * tiles.pixels;
    const int count = static_cast<int>(min(static_cast<int64_t>(tiles.pixels), p.pixels() - start));
    const TilePlace place(p, tiles, n, start, count);
    const TileLogits<T> logits = load_tile(tiles, place, input, tile);
    const T* const slopes = table.of_sample(n, p.classes);
    const int own = min(team.pixel, count - 1);
    Softmax<T> found[1];
    if (team.takes_part(count)) {
      scan_classes(p, table, slopes, team, [&](int c, T(&x)[1]) { x[0] = logits.at(c, own); }, found);
    }
    const int64_t at = n * p.pixels() + start + own;
    const int label = pixel_label(p, labels, at);
    PixelSlopes<T> pixel{};
    T smoothing = 0;
    if (label >= 0) {
      const bool known = label < classes;
      const T shift = known ? logits.at(label, own) - found[0].max : static_cast<T>(NAN);
      const T upstream = grad_pixel[n * kPixelSums] + (p.losses ? grad_losses[at] : T(0));
      pixel = pixel_slopes(p, found[0], shift, known ? table.weight(label) : T(1),
                           known && slopes != nullptr ? slopes[label * kRegionSums] : T(0), upstream, smoothing);
    }
    // All have read the label's logit: gradients take the place of the logits and leave together.
    __syncthreads();
    if (team.pixel < count) {
#pragma unroll 4
      for (int c = team.group; c < classes; c += team.groups) {
        const T slope = slopes == nullptr ? T(0) : slopes[c * kRegionSums + 1];
        const T smoothed = p.soft == 0 ? T(0) : smoothing * table.weight(c);
        T grad = class_gradient(pixel, logits.at(c, own), slope, smoothed, c == label);
        grad = label < 0 ? T(0) : grad;
        if (tiles.staged) {
          tile[c * logits.class_step + own * logits.pixel_step] = grad;
        } else {
          with_logit_type<T>(output.dtype, [&](auto type) {
            using scalar_t = decltype(type);
            const int64_t at = place.start + c * place.class_step + own * place.pixel_step;
            static_cast<scalar_t*>(output.data)[at] = static_cast<scalar_t>(grad);
          });
        }
      }
    }
    __syncthreads();
    if (tiles.staged) {
      store_tile(tiles, place, tile, output);
      __syncthreads();
    }
  }
}

}  // namespace
}  // namespace segkernels
