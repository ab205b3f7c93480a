// Backward of a separable resampling on the GPU: each source element gathers its own terms in a fixed order, without
// atomics. A thread owns columns of the gradient and sums rows, which reads the gradient once; the columns' sums then
// go through shared memory to the source columns.
#pragma once

#include "../common/bilinear.h"
#include "../common/dispatch.h"
#include "../common/upsample_groups.h"
#include "resample_rows.cuh"

namespace segkernels {

constexpr int kOwnColumns = 8;                         // elements of a gradient row that a thread sums
constexpr int kTileElements = kThreads * kOwnColumns;  // of a block

// Tiles of source columns and channels, over strips of source rows.
struct GradientTiles {
  static constexpr int kRows = 16;
  static constexpr int kChunk = 32;

  int64_t first_image;  // planes in NCHW; of a launch
  uint32_t images;
  int in_h, in_w, out_h, out_w;
  int channels;                // elements of a pixel
  int chunk, chunks;           // channels of a tile
  int columns, tiles;          // source columns of a tile
  int window;                  // gradient columns of the widest tile
  int rows, strips;            // source rows of a strip
  int align;                   // a tile's gradient columns begin at a multiple of it
  bool wide;                   // gradient rows are read by vectors
  bool two_rows, two_columns;  // outputs lie between two source rows, columns
  dim3 block;

  // Gradient columns of the widest tile.
  template <typename Axis>
  int64_t widest(const Axis& axis) const {
    int64_t most = 0;
    for (int x = 0; x < in_w; x += columns) {
      const int begin = first_output(axis, x - 1) / align * align;
      most = std::max<int64_t>(most, first_output(axis, static_cast<int64_t>(x) + columns) - begin);
    }
    return most;
  }

  // Columns that fit a block; false where not even the gradient of one does.
  template <typename Axis>
  bool fit_columns(const Axis& axis, int vector) {
    const int narrowest = wide && channels > 1 ? vector : 1;
    for (chunk = std::min(channels, kChunk);; chunk = std::max(narrowest, chunk / 2)) {
      chunks = (channels + chunk - 1) / chunk;
      chunk = (channels + chunks - 1) / chunks;
      chunk = (chunk + narrowest - 1) / narrowest * narrowest;
      chunks = (channels + chunk - 1) / chunk;
      const int64_t most = kTileElements / chunk;
      const int64_t whole = out_w <= most ? in_w : (most - align) * in_w / out_w - 1;
      columns = static_cast<int>(std::clamp<int64_t>(whole, 1, std::min<int64_t>(in_w, most)));
      while (columns > 1 && widest(axis) * chunk > kTileElements) {
        columns = columns * 3 / 4;
      }
      if (widest(axis) * chunk <= kTileElements) {
        break;
      }
      if (chunk == narrowest) {
        return false;
      }
    }
    tiles = (in_w + columns - 1) / columns;
    const int fitting = std::exchange(columns, (in_w + tiles - 1) / tiles);
    if (widest(axis) * chunk > kTileElements) {  // tiles of equal size may cut at worse places
      columns = fitting;
    }
    tiles = (in_w + columns - 1) / columns;
    window = static_cast<int>(widest(axis));
    return true;
  }

  GradientTiles(const Upsample2dShape& s, bool wide_, int vector)
      : in_h(static_cast<int>(s.in_h)),
        in_w(static_cast<int>(s.in_w)),
        out_h(static_cast<int>(s.out_h)),
        out_w(static_cast<int>(s.out_w)),
        channels(static_cast<int>(s.step())),
        align(wide_ && channels == 1 ? vector : 1),
        wide(wide_),
        two_rows(in_h != out_h),
        two_columns(in_w != out_w) {}

  // Strips as long as they may be while there is work for all multiprocessors: each reads one group of rows twice.
  void shape_block(int64_t all_images, int multiprocessors) {
    // Source columns count where they are many more, so that their places fit shared memory.
    const int64_t elements = std::max<int64_t>(window, columns / 2) * chunk;
    const unsigned int width = threads_for((elements + kOwnColumns - 1) / kOwnColumns);
    block = dim3(width, kThreads / width);
    const int64_t threads = all_images * chunks * tiles * width;
    rows = kRows;
    while (rows > 4 && threads * ((in_h + rows - 1) / rows) < 1024 * static_cast<int64_t>(multiprocessors)) {
      rows /= 2;
    }
    strips = (in_h + rows - 1) / rows;
    rows = (in_h + strips - 1) / strips;
    strips = (in_h + rows - 1) / rows;
  }

  __host__ __device__ int starts() const {
    return columns + 2 + rows + 2;
  }
  // Sums of gradient columns, two weights of each, and the first outputs of columns and rows.
  template <typename T>
  size_t shared_bytes() const {
    return block.y * ((block.x * kOwnColumns + 2 * window) * sizeof(T) + starts() * sizeof(int));
  }
};

// One vector of a thread's elements of a gradient row.
template <typename scalar_t>
__device__ __forceinline__ Wide<scalar_t> load_owned(const scalar_t* line, const int (&places)[kOwnColumns], int vector,
                                                     bool wide) {
  constexpr int kVector = kWide<scalar_t>;
  Wide<scalar_t> values{};
  if (wide) {
    if (places[vector * kVector] >= 0) {
      values = *reinterpret_cast<const Wide<scalar_t>*>(line + places[vector * kVector]);
    }
    return values;
  }
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    if (places[vector * kVector + k] >= 0) {
      values.values[k] = line[places[vector * kVector + k]];
    }
  }
  return values;
}

// An output's weights, what it gives to a single source counting as low.
template <typename T>
__device__ __forceinline__ BilinearTap<T> folded(const BilinearTap<T>& tap) {
  return tap.low == tap.high ? BilinearTap<T>{tap.low, tap.high, tap.low_weight + tap.high_weight, T(0)} : tap;
}

// kTwo: outputs may read two sources of a dimension, and not one. Enlarging fourfold, a gradient element costs a load,
// two multiplications and additions and a quarter of a turn through shared memory: the gradient's bytes bound it.
template <bool kTwo, typename scalar_t, typename T, typename Axis>
__global__ void __launch_bounds__(kThreads, 2)
    upsample_gradient_kernel(GradientTiles t, Axis rows, Axis columns,
                             const scalar_t* __restrict__ grad_output,  // [N, C, H, W]
                             scalar_t* __restrict__ grad_input) {       // [N, C, h, w]
  constexpr int kVector = kWide<scalar_t>;
  const int width = blockDim.x;
  // What this row of threads has in shared memory, see GradientTiles::shared_bytes().
  T* const sums = dynamic_shared<T>() + threadIdx.y * (width * kOwnColumns + 2 * t.window);
  T* const low_weights = sums + width * kOwnColumns;
  T* const high_weights = low_weights + t.window;
  int* const starts = reinterpret_cast<int*>(dynamic_shared<T>() + blockDim.y * (width * kOwnColumns + 2 * t.window)) +
                      threadIdx.y * t.starts();  // first outputs of the columns from one before the tile on
  int* const row_starts = starts + t.columns + 2;

  const uint32_t item = blockIdx.x * blockDim.y + threadIdx.y;
  const uint32_t tile = item / t.chunks, strip = tile / t.tiles, place = strip / t.strips;
  const bool active = place < t.images;
  const int64_t image = t.first_image + place;
  const int first_channel = (item - tile * t.chunks) * t.chunk;
  const int left = (tile - strip * t.tiles) * t.columns, top = (strip - place * t.strips) * t.rows;
  const int channels = min(t.chunk, t.channels - first_channel);
  const int count_x = active ? min(t.columns, t.in_w - left) : 0, count_y = active ? min(t.rows, t.in_h - top) : 0;
  for (int i = threadIdx.x; i < count_x + 2; i += width) {
    starts[i] = first_output(columns, left - 1 + i);
  }
  for (int i = threadIdx.x; i < count_y + 2; i += width) {
    row_starts[i] = first_output(rows, top - 1 + i);
  }
  __syncthreads();

  const int base = starts[0] / t.align * t.align;
  const int window = active ? starts[count_x + 1] - base : 0;
  for (int i = threadIdx.x; i < window; i += width) {
    const BilinearTap<T> tap = folded<T>(columns.tap(base + i));
    low_weights[i] = tap.low_weight;
    high_weights[i] = tap.high_weight;
  }
  const auto owned = [&](int k) {
    const int vector = k / kVector;
    return t.wide ? (vector * width + static_cast<int>(threadIdx.x)) * kVector + k % kVector
                  : k * width + static_cast<int>(threadIdx.x);
  };
  int places[kOwnColumns];  // in a gradient row; negative outside
#pragma unroll
  for (int k = 0; k < kOwnColumns; ++k) {
    const int pixel = owned(k) / channels;
    places[k] = pixel < window ? (base + pixel) * t.channels + first_channel + owned(k) - pixel * channels : -1;
  }

  const scalar_t* const from = grad_output + image * t.out_h * t.out_w * t.channels;
  T current[kOwnColumns], next[kOwnColumns] = {};  // sums for this source row and the one after
  const auto advance = [&](int begin, int end) {
#pragma unroll
    for (int k = 0; k < kOwnColumns; ++k) {
      current[k] = next[k];
      next[k] = 0;
    }
#pragma unroll 2
    for (int row = begin; row < end; ++row) {
      const BilinearTap<T> tap = folded<T>(rows.tap(row));
      const scalar_t* const line = from + static_cast<int64_t>(row) * t.out_w * t.channels;
      Wide<scalar_t> values[kOwnColumns / kVector];
#pragma unroll
      for (int v = 0; v < kOwnColumns / kVector; ++v) {
        values[v] = load_owned(line, places, v, t.wide);
      }
#pragma unroll
      for (int k = 0; k < kOwnColumns; ++k) {
        const T value = static_cast<T>(values[k / kVector].values[k % kVector]);
        current[k] += value * tap.low_weight;
        if (kTwo && t.two_rows) {  // else an infinite gradient would meet weight zero
          next[k] += value * tap.high_weight;
        }
      }
    }
  };
  if (kTwo && active) {
    advance(row_starts[0], row_starts[1]);
  }
  for (int i = 0; i < t.rows; ++i) {
    if (i < count_y) {
      advance(row_starts[i + 1], row_starts[i + 2]);
#pragma unroll
      for (int k = 0; k < kOwnColumns; ++k) {
        sums[owned(k)] = current[k];
      }
    }
    __syncthreads();
    scalar_t* const to = grad_input + ((image * t.in_h + top + i) * t.in_w + left) * t.channels + first_channel;
    for (int source = threadIdx.x; source < (i < count_y ? count_x * channels : 0); source += width) {
      const int x = channels == 1 ? source : source / channels;
      const int c = source - x * channels;
      const int begin = starts[x + 1] - base, end = starts[x + 2] - base;
      T sum = 0;
      for (int output = begin; output < end; ++output) {
        sum += sums[output * channels + c] * low_weights[output];
      }
      if (kTwo && t.two_columns) {
        T before = 0;
        for (int output = starts[x] - base; output < begin; ++output) {
          before += sums[output * channels + c] * high_weights[output];
        }
        sum += before;
      }
      to[static_cast<int64_t>(x) * t.channels + c] = static_cast<scalar_t>(sum);
    }
    __syncthreads();
  }
}

// Where one source column has more outputs than a block takes: a warp gathers one source element.
template <bool kTwo, typename scalar_t, typename T, typename Axis>
__global__ void __launch_bounds__(kThreads)
    upsample_gradient_far_kernel(int64_t sources, int64_t channels, Axis rows, Axis columns,
                                 const scalar_t* __restrict__ grad_output,  // [N, C, H, W]
                                 scalar_t* __restrict__ grad_input) {       // [N, C, h, w]
  const int lane = threadIdx.x % 32;
  const auto weight = [](const BilinearTap<T>& tap, int64_t source) {
    return (tap.low == source ? tap.low_weight : T(0)) + (tap.high == source ? tap.high_weight : T(0));
  };
  for (int64_t source = blockIdx.x * int64_t{kThreads / 32} + threadIdx.x / 32; source < sources;
       source += gridDim.x * int64_t{kThreads / 32}) {
    int64_t rest = source / channels;
    const int64_t c = source - rest * channels;
    const int64_t x = rest % columns.in_size;
    rest /= columns.in_size;
    const int64_t y = rest % rows.in_size;
    const scalar_t* const from = grad_output + rest / rows.in_size * rows.out_size * columns.out_size * channels + c;
    const int begin = first_output(columns, kTwo ? x - 1 : x), end = first_output(columns, x + 1);
    const int last = first_output(rows, y + 1);
    T sum = 0;
    for (int row = first_output(rows, kTwo ? y - 1 : y); row < last; ++row) {
      const BilinearTap<T> tap = rows.tap(row);
      if (tap.low != y && tap.high != y) {
        continue;
      }
      T row_sum = 0;
      for (int output = begin + lane; output < end; output += 32) {
        const scalar_t value = from[(row * columns.out_size + output) * channels];
        row_sum += static_cast<T>(value) * weight(columns.tap(output), x);
      }
      sum += row_sum * weight(tap, y);
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    }
    if (lane == 0) {
      grad_input[source] = static_cast<scalar_t>(sum);
    }
  }
}

template <bool kTwo, typename scalar_t, typename Axis>
void gather_gradient(const Upsample2dShape& s, const Axis& rows, const Axis& columns, const Tensor& grad_output,
                     Tensor& grad_input) {
  using T = accumulate_t<scalar_t>;
  const DeviceScope scope(grad_output);
  const scalar_t* from = static_cast<const scalar_t*>(grad_output.const_data_ptr());
  scalar_t* to = static_cast<scalar_t*>(grad_input.mutable_data_ptr());
  constexpr int kVector = kWide<scalar_t>;
  GradientTiles t(s, is_wide(from) && (s.channels_last ? s.channels : s.out_w) % kVector == 0, kVector);
  if (!t.fit_columns(columns, kVector)) {
    const int64_t sources = grad_input.numel();
    launch(upsample_gradient_far_kernel<kTwo, scalar_t, T, Axis>, blocks_for(sources, kThreads / 32), kThreads, 0,
           scope.stream(), sources, s.step(), rows, columns, from, to);
    return;
  }
  t.shape_block(s.images(), scope.multiprocessors());
  const int64_t items = static_cast<int64_t>(t.chunks) * t.tiles * t.strips;  // of an image
  const int64_t most = std::max<int64_t>(1, (int64_t{1} << 30) / items);
  for (t.first_image = 0; t.first_image < s.images(); t.first_image += most) {
    t.images = static_cast<uint32_t>(std::min(most, s.images() - t.first_image));
    launch(upsample_gradient_kernel<kTwo, scalar_t, T, Axis>, blocks_for(t.images * items, static_cast<int>(t.block.y)),
           t.block, t.template shared_bytes<T>(), scope.stream(), t, rows, columns, from, to);
  }
}

}  // namespace segkernels
