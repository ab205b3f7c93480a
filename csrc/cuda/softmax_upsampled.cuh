// Losses on softmax probabilities from logits that are upsampled bilinearly to the labels' size on the way; upsampled
// logits live in registers only.
//
// An interval is the outputs between two neighbouring source rows and two neighbouring source columns: all of them
// blend the same four logits of a class. A block takes one row of intervals of some columns of one sample: it brings
// their source logits into shared memory, finds each output pixel's softmax (a thread goes through the classes of a
// pixel), and then lets a thread go through the pixels of an interval for one class, whose four logits and four sums
// stay in registers: about ten instructions a logit and pass, which bound it, and no memory beyond the small logits'.
// The gradient of a source row is gathered from the blocks that read it, in a fixed order.
#pragma once

#include "interval_grid.cuh"
#include "softmax_statistics.cuh"

namespace segkernels {
namespace {

constexpr int kBlockColumns = 128;  // outputs in a row of a block, about
constexpr int kSourceBytes = 40 * 1024;
constexpr int kMaxSourceBytes = 48 * 1024;  // for a single interval
constexpr int kTilePixels = 1024;           // outputs of a block whose softmax is kept at once
constexpr int kTileColumns = 256;
constexpr int kTileRows = 64;
constexpr int kRows = 2;  // outputs below each other that a thread computes at once

template <typename T>
struct Intervals : IntervalGrid<T> {
  int classes;
  int parts;  // of the intervals that one class of a block's sums is cut into
  bool staged, channels_last;

  Intervals(const SoftmaxParams& p, bool last)
      : IntervalGrid<T>(p.in_h, p.in_w, p.out_h, p.out_w, p.align_corners, kBlockColumns,
                        kSourceBytes / (2 * (p.classes | 1) * static_cast<int64_t>(sizeof(T))) - 1),
        classes(static_cast<int>(p.classes)),
        channels_last(last && p.classes > 1) {
    staged = 2 * class_step() * static_cast<int64_t>(sizeof(T)) * (this->width + 1) <= kMaxSourceBytes;
    parts = std::max(1, std::min(this->width, 4 * kThreads / classes));
  }
  // An odd number of values a source pixel: a warp reads neighbouring source pixels or neighbouring classes.
  __host__ __device__ int64_t class_step() const {
    return classes | 1;
  }
  __host__ __device__ size_t source_bytes() const {
    return staged ? (2 * (this->width + 1) * class_step() * sizeof(T) + 15) / 16 * 16 : 0;
  }
  // Sums of p * t, p and t that the parts hand over.
  __host__ __device__ size_t sums_bytes() const {
    return parts > 1 ? parts * classes * kRegionSums * sizeof(T) : 0;
  }
};

// The four logits of a class around an interval.
template <typename T>
struct Corners {
  const T* data;  // of the upper left source pixel, class 0
  int64_t row_step, column_step, class_step;
  int last;  // the last source column

  __device__ __forceinline__ void at(int interval, int64_t c, T& a, T& b, T& d, T& e) const {
    const T* const left = data + interval * column_step + c * class_step;
    const T* const right = data + min(interval + 1, last) * column_step + c * class_step;
    a = *left;
    b = *right;
    d = left[row_step];
    e = right[row_step];
  }
};

// What a block knows of the outputs that it works on.
template <typename T>
struct OutputTile {
  PixelSlopes<T>
      pixel[kTilePixels];    // first max, sum, dot and smoothed of Softmax; in the end forward has max and inverse
  T smoothing[kTilePixels];  // first the weights of Softmax
  T column_weight[kTileColumns], row_weight[kTileRows];
  int label[kTilePixels];  // -1: ignored
  int interval[kTileColumns];
  int x, y, columns, rows;
};

template <typename T>
__device__ Corners<T> load_corners(const Intervals<T>& intervals, const IntervalPlace& place, const Logits& input,
                                   T* source) {
  const int classes = intervals.classes;
  const int64_t height = intervals.rows.in_size, width = intervals.columns.in_size;
  const int64_t column_step = intervals.channels_last ? classes : 1;
  const int64_t class_step = intervals.channels_last ? 1 : height * width;
  const int64_t row_step = place.row + 1 < height ? width * column_step : 0;
  const int64_t from = place.n * classes * height * width + (place.row * width + place.column) * column_step;
  const int last = static_cast<int>(min(static_cast<int64_t>(place.width), width - 1 - place.column));
  if (!intervals.staged) {
    return {static_cast<const T*>(input.data) + from, row_step, column_step, class_step, last};
  }
  const int step = static_cast<int>(intervals.class_step());
  const int columns = last + 1;
  with_logit_type<T>(input.dtype, [&](auto type) {
    using scalar_t = decltype(type);
    const scalar_t* const values = static_cast<const scalar_t*>(input.data) + from;
    for (int i = threadIdx.x; i < columns * classes; i += kThreads) {
      const int column = intervals.channels_last ? i / classes : i % columns;
      const int c = intervals.channels_last ? i % classes : i / columns;
      const scalar_t* const one = values + column * column_step + c * class_step;
      source[column * step + c] = static_cast<T>(*one);
      source[(columns + column) * step + c] = static_cast<T>(one[row_step]);
    }
  });
  return {source, columns * step, step, 1, last};
}

// Calls tile(first) for the outputs of a block, piece by piece; `begin` are the first columns of its intervals.
template <typename T, typename F>
__device__ void for_each_tile(const Intervals<T>& intervals, const IntervalPlace& place, int* begin,
                              OutputTile<T>& tile, const F& f) {
  find_columns(intervals, place, begin);
  const int top = first_output(intervals.rows, place.row);
  const int bottom = first_output(intervals.rows, place.row + 1);
  __syncthreads();
  const int right = begin[place.width];
  bool first = true;
  for (int x = begin[0]; x < right || first; x += kTileColumns) {
    const int columns = min(kTileColumns, right - x);
    const int most = min(kTileRows, kTilePixels / max(columns, 1));
    for (int y = top; y < bottom || first; y += most) {
      if (threadIdx.x == 0) {
        tile.x = x;
        tile.y = y;
        tile.columns = columns;
        tile.rows = min(most, bottom - y);
      }
      for (int i = threadIdx.x; i < columns; i += kThreads) {
        tile.interval[i] = interval_of(begin, place.width, x + i);
        tile.column_weight[i] = high_weight(intervals.columns, x + i);
      }
      for (int i = threadIdx.x; i < most && y + i < bottom; i += kThreads) {
        tile.row_weight[i] = high_weight(intervals.rows, y + i);
      }
      __syncthreads();
      f(first);
      first = false;
      __syncthreads();
    }
  }
}

// Calls f(index in the tile, pixel of the sample, softmax, label, the label's logit less the largest) for each output
// of a tile that is not ignored, and skip(index, pixel) for the others. That logit is NaN where the label is no class.
template <typename T, typename F, typename G>
__device__ __forceinline__ void for_each_softmax(const SoftmaxParams& p, OutputTile<T>& tile, const Corners<T>& corners,
                                                 const ClassTable<T>& table, const T* slopes, const LabelBins& labels,
                                                 int64_t n, const F& f, const G& skip) {
  const Team<T> alone{0, 1, 0, 1, nullptr};
  const int columns = tile.columns;
  const int groups = (tile.rows + kRows - 1) / kRows;
  const int64_t first = n * p.pixels() + int64_t{tile.y} * p.out_w + tile.x;
  for (int i = threadIdx.x; i < columns * groups; i += kThreads) {
    const int column = i % columns;
    const int row = i / columns * kRows;
    const int interval = tile.interval[column];
    const T weight = tile.column_weight[column];
    T row_weight[kRows];
    bool any = false;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int y = min(row + k, tile.rows - 1);
      row_weight[k] = tile.row_weight[y];
      const int label = pixel_label(p, labels, first + y * p.out_w + column);
      any |= label >= 0;
      tile.label[y * columns + column] = label;
    }
    if (!any) {
      continue;
    }
    Softmax<T> found[kRows];
    scan_classes(
        p, table, slopes, alone,
        [&](int64_t c, T(&x)[kRows]) {
          T a, b, d, e;
          corners.at(interval, c, a, b, d, e);
          const T upper = blend(a, b, weight), lower = blend(d, e, weight);
#pragma unroll
          for (int k = 0; k < kRows; ++k) {
            x[k] = blend(upper, lower, row_weight[k]);
          }
        },
        found);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int index = min(row + k, tile.rows - 1) * columns + column;
      tile.pixel[index] = {found[k].max, found[k].sum, found[k].dot, found[k].smoothed};
      tile.smoothing[index] = found[k].weights;
    }
  }
  // What follows needs other registers, and every thread for one pixel.
  __syncthreads();
  for (int index = threadIdx.x; index < columns * tile.rows; index += kThreads) {
    const int row = index / columns;
    const int column = index - row * columns;
    const int label = tile.label[index];
    const int64_t pixel = first + row * p.out_w + column;
    if (label < 0) {
      skip(index, pixel);
      continue;
    }
    const PixelSlopes<T> kept = tile.pixel[index];
    const Softmax<T> found{kept.max, kept.inverse, kept.shift, kept.extra, tile.smoothing[index]};
    T shift = static_cast<T>(NAN);
    if (label < p.classes) {
      T a, b, d, e;
      corners.at(tile.interval[column], label, a, b, d, e);
      const T weight = tile.column_weight[column];
      shift = blend(blend(a, b, weight), blend(d, e, weight), tile.row_weight[row]) - found.max;
    }
    f(index, pixel, found, label, shift);
  }
}

// Calls f(index, row weight, logit) for the outputs of interval `interval` that lie in the tile and are
// not ignored; column(weight) at the end of each column.
template <typename T, typename F, typename G>
__device__ __forceinline__ void for_each_output(const OutputTile<T>& tile, const Corners<T>& corners, const int* begin,
                                                int interval, int64_t c, const F& f, const G& column) {
  T a, b, d, e;
  corners.at(interval, c, a, b, d, e);
  const int first = max(begin[interval] - tile.x, 0);
  const int end = min(begin[interval + 1] - tile.x, tile.columns);
  for (int x = first; x < end; ++x) {
    const T weight = tile.column_weight[x];
    const T upper = blend(a, b, weight);
    const T step = blend(d, e, weight) - upper;
#pragma unroll 2
    for (int y = 0; y < tile.rows; ++y) {
      const int index = y * tile.columns + x;
      if (tile.label[index] >= 0) {
        const T row_weight = tile.row_weight[y];
        f(index, row_weight, fma(row_weight, step, upper));
      }
    }
    column(weight);
  }
}

// Dynamic shared memory: the tile, source logits, the sums of parts of intervals, the first columns of intervals.
template <typename T>
size_t shared_bytes(const Intervals<T>& intervals) {
  return sizeof(OutputTile<T>) + intervals.source_bytes() + intervals.sums_bytes() +
         (intervals.width + 1) * sizeof(int);
}

template <typename T>
struct SharedMemory {
  OutputTile<T>* tile;
  T* source;
  T* sums;  // [parts, C, 3]
  int* begin;

  __device__ explicit SharedMemory(const Intervals<T>& intervals) {
    unsigned char* const memory = dynamic_shared<unsigned char>();
    unsigned char* const behind = memory + sizeof(OutputTile<T>) + intervals.source_bytes();
    tile = reinterpret_cast<OutputTile<T>*>(memory);
    source = reinterpret_cast<T*>(memory + sizeof(OutputTile<T>));
    sums = reinterpret_cast<T*>(behind);
    begin = reinterpret_cast<int*>(behind + intervals.sums_bytes());
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    softmax_upsampled_fwd_kernel(SoftmaxParams p, Intervals<T> intervals, LabelBins labels, Logits input,
                                 ClassTable<T> table,
                                 double* region,  // [N, C, h * chunks, 3]
                                 double* pixel,   // [N, h * chunks, 3]
                                 T* losses) {     // [N, H, W]
  const SharedMemory<T> shared(intervals);
  OutputTile<T>& tile = *shared.tile;
  const int classes = intervals.classes, parts = intervals.parts;
  for (int64_t item = blockIdx.x; item < p.batch * intervals.items(); item += gridDim.x) {
    const IntervalPlace place(intervals, item);
    const Corners<T> corners = load_corners(intervals, place, input, shared.source);
    double sums[kPixelSums] = {};
    double* const to = region + (place.n * (classes - 1) * intervals.items() + item) * kRegionSums;
    const int64_t step = intervals.items() * kRegionSums;
    for_each_tile(intervals, place, shared.begin, tile, [&](bool first) {
      for_each_softmax(
          p, tile, corners, table, static_cast<const T*>(nullptr), labels, place.n,
          [&](int index, int64_t at, const Softmax<T>& found, int label, T shift) {
            const T weight = label < classes ? table.weight(label) : static_cast<T>(NAN);
            const T loss = pixel_loss(p, found, shift, weight);
            sums[0] += static_cast<double>(loss);
            sums[1] += static_cast<double>(weight);
            sums[2] += 1;
            tile.pixel[index] = {found.max, label < classes ? 1 / found.sum : static_cast<T>(NAN), 0, 0};
            if (p.losses) {
              losses[at] = loss;
            }
          },
          [&](int, int64_t at) {
            if (p.losses) {
              losses[at] = T(0);
            }
          });
      if (!p.regions) {
        return;
      }
      __syncthreads();
      for (int i = threadIdx.x; i < classes * parts; i += kThreads) {
        const int c = i % classes;
        T own[kRegionSums] = {};
        for (int interval = i / classes; interval < place.width; interval += parts) {
          for_each_output(
              tile, corners, shared.begin, interval, c,
              [&](int index, T, T x) {
                const T probability = exp_below(x - tile.pixel[index].max) * tile.pixel[index].inverse;
                own[1] += probability;
                if (tile.label[index] == c) {
                  own[0] += probability;
                  own[2] += 1;
                }
              },
              [](T) {});
        }
        for (int k = 0; k < kRegionSums; ++k) {
          if (parts > 1) {
            shared.sums[i * kRegionSums + k] = own[k];
          } else {
            double& sum = to[c * step + k];
            sum = (first ? 0.0 : sum) + static_cast<double>(own[k]);
          }
        }
      }
      if (parts > 1) {
        __syncthreads();
        for (int i = threadIdx.x; i < classes * static_cast<int>(kRegionSums); i += kThreads) {
          double& sum = to[i / kRegionSums * step + i % kRegionSums];
          double total = first ? 0.0 : sum;
          for (int part = 0; part < parts; ++part) {
            total += static_cast<double>(shared.sums[part * classes * kRegionSums + i]);
          }
          sum = total;
        }
      }
    });
    block_sums(sums);
    store_sums(sums, pixel + item * kPixelSums);
  }
}

// Gradients of the source pixels around a block's intervals, from this block alone.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    softmax_upsampled_bwd_kernel(SoftmaxParams p, Intervals<T> intervals, LabelBins labels, Logits input,
                                 ClassTable<T> table,
                                 const T* grad_pixel,   // [N, 3]
                                 const T* grad_losses,  // [N, H, W]
                                 T* partial) {          // [N, h, chunks, 2, width + 1, C]
  const SharedMemory<T> shared(intervals);
  OutputTile<T>& tile = *shared.tile;
  const int classes = intervals.classes;
  const int64_t row_size = int64_t{intervals.width + 1} * classes;
  for (int64_t item = blockIdx.x; item < p.batch * intervals.items(); item += gridDim.x) {
    const IntervalPlace place(intervals, item);
    const Corners<T> corners = load_corners(intervals, place, input, shared.source);
    const T* const slopes = table.of_sample(place.n, p.classes);
    T* const upper = partial + item * 2 * row_size;
    T* const lower = upper + row_size;
    for_each_tile(intervals, place, shared.begin, tile, [&](bool first) {
      for_each_softmax(
          p, tile, corners, table, slopes, labels, place.n,
          [&](int index, int64_t at, const Softmax<T>& found, int label, T shift) {
            const bool known = label < classes;
            const T upstream = grad_pixel[place.n * kPixelSums] + (p.losses ? grad_losses[at] : T(0));
            tile.pixel[index] = pixel_slopes(p, found, shift, known ? table.weight(label) : T(1),
                                             known && slopes != nullptr ? slopes[label * kRegionSums] : T(0), upstream,
                                             tile.smoothing[index]);
          },
          [](int, int64_t) {});
      // Neighbouring intervals share a source column: every other one at a time.
      for (int odd = 0; odd < 2; ++odd) {
        __syncthreads();
        for (int i = threadIdx.x; i < (place.width + 1 - odd) / 2 * classes; i += kThreads) {
          const int interval = i / classes * 2 + odd;
          const int c = i % classes;
          const T slope = slopes == nullptr ? T(0) : slopes[c * kRegionSums + 1];
          const T weight = p.soft == 0 ? T(0) : table.weight(c);
          T sums[4] = {}, all = 0, low = 0;
          for_each_output(
              tile, corners, shared.begin, interval, c,
              [&](int index, T row_weight, T x) {
                const T grad =
                    class_gradient(tile.pixel[index], x, slope, tile.smoothing[index] * weight, c == tile.label[index]);
                all += grad;
                low += grad * row_weight;
              },
              [&](T column_weight) {
                const T high = all - low;
                sums[1] += high * column_weight;
                sums[0] += high * (1 - column_weight);
                sums[3] += low * column_weight;
                sums[2] += low * (1 - column_weight);
                all = low = 0;
              });
          const int at = interval * classes + c;
          const bool add_left = !first || odd != 0;
          const bool add_right = !first || (odd != 0 && interval + 1 < place.width);
          upper[at] = sums[0] + (add_left ? upper[at] : T(0));
          lower[at] = sums[2] + (add_left ? lower[at] : T(0));
          upper[at + classes] = sums[1] + (add_right ? upper[at + classes] : T(0));
          lower[at + classes] = sums[3] + (add_right ? lower[at + classes] : T(0));
        }
      }
    });
  }
}

}  // namespace
}  // namespace segkernels
