// Bilinear upsampling seen from the source, for losses that upsample as they read.
//
// An interval is the outputs between two neighbouring source rows and two neighbouring source columns: all of them
// blend the same four values. A block works on one row of intervals, of a chunk of columns. What it adds to the
// gradients of the source pixels around it goes to a place of its own, and a second kernel gathers from there in a
// fixed order.
#pragma once

#include "../common/bilinear.h"
#include "../common/loss.cuh"

namespace segkernels {
namespace {

template <typename T>
struct IntervalGrid {
  BilinearAxis<T> rows, columns;
  int64_t chunks;  // blocks of a row of intervals
  int width;       // intervals of a block

  // About `outputs` columns of outputs a block, of at most `most` intervals.
  IntervalGrid(int64_t in_h, int64_t in_w, int64_t out_h, int64_t out_w, bool align_corners, int64_t outputs,
               int64_t most)
      : rows(bilinear_axis<T>(in_h, out_h, align_corners)), columns(bilinear_axis<T>(in_w, out_w, align_corners)) {
    const int64_t wanted = std::min({(outputs * in_w + out_w / 2) / out_w, in_w, most});
    width = static_cast<int>(std::max<int64_t>(1, wanted));
    chunks = (in_w + width - 1) / width;
  }
  __host__ __device__ int64_t items() const {
    return rows.in_size * chunks;
  }
};

// Where a block works.
struct IntervalPlace {
  int64_t n, row, chunk;  // sample, source row, chunk of its columns
  int64_t column;         // first source column
  int width;              // intervals

  template <typename T>
  __device__ IntervalPlace(const IntervalGrid<T>& grid, int64_t item) {
    n = item / grid.items();
    const int64_t rest = item - n * grid.items();
    row = rest / grid.chunks;
    chunk = rest - row * grid.chunks;
    column = chunk * grid.width;
    width = static_cast<int>(min(static_cast<int64_t>(grid.width), grid.columns.in_size - column));
  }
};

// First output of an axis that reads source `source`, or a later one, first.
template <typename T>
__device__ int first_output(const BilinearAxis<T>& axis, int64_t source) {
  int64_t low = 0, high = axis.out_size;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (axis.tap(middle).low < source) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return static_cast<int>(low);
}

// First output columns of a block's intervals, and of the next: [width + 1].
template <typename T>
__device__ __forceinline__ void find_columns(const IntervalGrid<T>& grid, const IntervalPlace& place, int* begin) {
  for (int i = threadIdx.x; i <= place.width; i += kThreads) {
    begin[i] = first_output(grid.columns, place.column + i);
  }
}

__device__ __forceinline__ int interval_of(const int* begin, int width, int x) {
  int low = 0, high = width - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (begin[middle] <= x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Share of the higher neighbour; the last source pixel has none and takes all.
template <typename T>
__device__ __forceinline__ T high_weight(const BilinearAxis<T>& axis, int64_t output) {
  const BilinearTap<T> tap = axis.tap(output);
  return tap.low == tap.high ? T(0) : tap.high_weight;
}

// In one order everywhere, columns first: gradients then fit the sums to the last bit.
template <typename T>
__device__ __forceinline__ T blend(T low, T high, T weight) {
  return fma(weight, high - low, low);
}

// A source pixel's gradient: what the intervals below and above it give, of one chunk of columns or two.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_intervals_kernel(IntervalGrid<T> grid, int64_t batch, int64_t channels, bool channels_last,
                            const T* partial,  // [N, h, chunks, 2, width + 1, C]
                            Logits output) {   // [N, C, h, w]
  const int64_t in_h = grid.rows.in_size, in_w = grid.columns.in_size;
  const int64_t total = batch * channels * in_h * in_w;
  const int64_t row_size = int64_t{grid.width + 1} * channels;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t inner = channels_last ? channels : in_w;
    const int64_t outer = i / inner;
    const int64_t fast = i - outer * inner;
    int64_t n, c, y, x;
    if (channels_last) {
      const int64_t row = outer / in_w;
      c = fast;
      x = outer - row * in_w;
      n = row / in_h;
      y = row - n * in_h;
    } else {
      const int64_t plane = outer / in_h;
      x = fast;
      y = outer - plane * in_h;
      n = plane / channels;
      c = plane - n * channels;
    }
    const int64_t chunk = x / grid.width;
    const int64_t column = x - chunk * grid.width;
    const auto of_row = [&](int64_t row, int half) {
      const T* const own = partial + (((n * in_h + row) * grid.chunks + chunk) * 2 + half) * row_size + c;
      T sum = own[column * channels];
      if (column == 0 && chunk > 0) {
        sum += own[grid.width * channels - 2 * row_size];
      }
      return sum;
    };
    T sum = of_row(y, 0);
    if (y > 0) {
      sum += of_row(y - 1, 1);
    }
    with_logit_type<T>(output.dtype, [&](auto type) {
      static_cast<decltype(type)*>(output.data)[i] = static_cast<decltype(type)>(sum);
    });
  }
}

}  // namespace
}  // namespace segkernels
