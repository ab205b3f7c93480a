// The class of each pixel of bilinearly upsampled logits on the GPU; the upsampled logits never exist. A warp takes 32
// output columns and the output rows between two source rows. The few source columns that it needs go to shared memory,
// some classes at a time, so that either layout is read along its lines and each logit is loaded once.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "../common/bilinear.h"
#include "../common/cuda.cuh"
#include "../common/dispatch.h"
#include "../common/upsample2d_shape.h"
#include "../common/upsample_groups.h"
#include "../common/upsample_labels.h"

namespace segkernels {
namespace {

constexpr int kWarp = 32;
constexpr int kClasses = 8;               // that a warp holds at a time
constexpr int kClassStep = kClasses + 1;  // odd: neighbouring columns lie in different banks
constexpr int kRowsOfWarp = 16;           // output rows after which another warp takes over

struct ArgmaxPlan {
  int64_t batch, classes;
  int64_t class_step, pixel_step, image_step;  // of logits, in elements
  int64_t tiles;                               // of 32 output columns
  int64_t parts;                               // of the output rows between two source rows
  int columns;                                 // source columns that a warp holds
  bool listed;                                 // two for each lane; else all from the first lane's on

  template <typename T>
  ArgmaxPlan(const Upsample2dShape& s, const BilinearAxis<T>& columns_axis)
      : batch(s.batch),
        classes(s.channels),
        class_step(s.channels_last ? 1 : s.in_h * s.in_w),
        pixel_step(s.step()),
        image_step(s.channels * s.in_h * s.in_w),
        tiles((s.out_w + kWarp - 1) / kWarp),
        parts((2 * s.out_h / s.in_h + kRowsOfWarp - 1) / kRowsOfWarp) {
    parts = std::max<int64_t>(parts, 1);
    const double span = s.in_w == s.out_w ? kWarp : std::ceil((kWarp - 1) * static_cast<double>(columns_axis.scale));
    listed = span + 3 > 2 * kWarp;
    columns = listed ? 2 * kWarp : static_cast<int>(span) + 3;
  }
  // Of a warp: two source rows, and which columns they are.
  template <typename T>
  __host__ __device__ int shared_bytes() const {
    return 2 * columns * kClassStep * static_cast<int>(sizeof(T)) +
           (columns + columns % 2) * static_cast<int>(sizeof(int));
  }
};

// A warp's part of the output and of shared memory.
template <typename T>
struct Tile {
  T* values;         // [2, columns, kClassStep]: classes of two source rows
  const int* list;   // [columns]: their places in a source row
  BilinearTap<T> x;  // of this lane, in `values`
  int64_t above, below;
};

template <typename scalar_t, typename T>
__device__ __forceinline__ void load_classes(const ArgmaxPlan& p, const Tile<T>& tile, const scalar_t* image,
                                             int64_t width, int64_t first, int count) {
  const int lane = threadIdx.x % kWarp;
  // Lanes lie side by side along what is contiguous in memory.
  int apart = 1;
  while (apart < kWarp && apart < p.columns) {
    apart *= 2;
  }
  const bool last = p.class_step == 1;
  const int class_begin = last ? lane % kClasses : lane / apart, class_apart = last ? kClasses : kWarp / apart;
  const int column_begin = last ? lane / kClasses : lane % apart, column_apart = last ? kWarp / kClasses : apart;
  for (int c = class_begin; c < count; c += class_apart) {
    const scalar_t* const plane = image + (first + c) * p.class_step;
    for (int j = column_begin; j < p.columns; j += column_apart) {
      const int64_t column = tile.list[j] * p.pixel_step;
      tile.values[j * kClassStep + c] = static_cast<T>(plane[tile.above * width * p.pixel_step + column]);
      tile.values[(p.columns + j) * kClassStep + c] = static_cast<T>(plane[tile.below * width * p.pixel_step + column]);
    }
  }
}

// kRows output rows from y on, all between the tile's two source rows. About six instructions for a pixel and class,
// which bounds it rather than memory from some ten classes on.
template <int kRows, typename scalar_t, typename T>
__device__ __forceinline__ void classify_rows(const ArgmaxPlan& p, const Tile<T>& tile, const scalar_t* image,
                                              const BilinearAxis<T>& rows, int64_t width, int64_t y,
                                              int (&labels)[kRows]) {
  T low_weight[kRows], high_weight[kRows], best[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const BilinearTap<T> tap = rows.tap(y + r);
    low_weight[r] = tap.low_weight;
    high_weight[r] = tap.high_weight;
    best[r] = -INFINITY;
    labels[r] = 0;
  }
  const T* const left = tile.values + tile.x.low * kClassStep;
  const T* const right = tile.values + tile.x.high * kClassStep;
  const int next_row = p.columns * kClassStep;
  for (int64_t first = 0; first < p.classes; first += kClasses) {
    const int count = static_cast<int>(min(p.classes - first, int64_t{kClasses}));
    __syncwarp();
    load_classes(p, tile, image, width, first, count);
    __syncwarp();
    for (int c = 0; c < count; ++c) {
      const T upper = left[c] * tile.x.low_weight + right[c] * tile.x.high_weight;
      const T lower = left[next_row + c] * tile.x.low_weight + right[next_row + c] * tile.x.high_weight;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const T value = upper * low_weight[r] + lower * high_weight[r];
        if (!(value <= best[r]) && best[r] == best[r]) {  // the first NaN stays
          best[r] = value;
          labels[r] = static_cast<int>(first) + c;
        }
      }
    }
  }
}

__device__ __forceinline__ void store_label(void* labels, int64_t label_bits, int64_t at, int label) {
  if (label_bits == 8) {
    static_cast<uint8_t*>(labels)[at] = static_cast<uint8_t>(label);
  } else if (label_bits == 32) {
    static_cast<int32_t*>(labels)[at] = label;
  } else {
    static_cast<int64_t*>(labels)[at] = label;
  }
}

template <typename scalar_t, typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 3 : 2)
    upsample_argmax_kernel(ArgmaxPlan p, BilinearAxis<T> rows, BilinearAxis<T> columns,
                           const scalar_t* __restrict__ logits,  // [N, C, h, w]
                           void* __restrict__ labels,            // [N, H, W]
                           int64_t label_bits) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned char* const shared = dynamic_shared<unsigned char>() + warp * p.shared_bytes<T>();
  Tile<T> tile;
  tile.values = reinterpret_cast<T*>(shared);
  int* const list = reinterpret_cast<int*>(tile.values + 2 * p.columns * kClassStep);
  tile.list = list;
  const int64_t items = p.batch * rows.in_size * p.parts * p.tiles;
  for (int64_t item = blockIdx.x * int64_t{kThreads / kWarp} + warp; item < items;
       item += gridDim.x * int64_t{kThreads / kWarp}) {
    int64_t rest = item / p.tiles;
    const int64_t x = (item - rest * p.tiles) * kWarp + lane;
    const int64_t part = rest % p.parts;
    rest /= p.parts;
    const int64_t image = rest / rows.in_size;
    tile.above = rest - image * rows.in_size;
    int64_t y = first_output(rows, tile.above) + part * kRowsOfWarp;
    int64_t end = first_output(rows, tile.above + 1);
    if (y >= end) {
      continue;
    }
    if (part + 1 < p.parts) {
      end = min(end, y + kRowsOfWarp);
    }
    tile.below = rows.tap(y).high;

    tile.x = columns.tap(min(x, columns.out_size - 1));
    __syncwarp();  // nobody reads the list of the tile before
    if (p.listed) {
      list[2 * lane] = static_cast<int>(tile.x.low);
      list[2 * lane + 1] = static_cast<int>(tile.x.high);
      tile.x.low = 2 * lane;
      tile.x.high = 2 * lane + 1;
    } else {
      const int first = __shfl_sync(0xffffffffu, static_cast<int>(tile.x.low), 0);
      for (int j = lane; j < p.columns; j += kWarp) {
        list[j] = min(first + j, static_cast<int>(columns.in_size) - 1);
      }
      tile.x.low -= first;
      tile.x.high -= first;
    }
    __syncwarp();

    const scalar_t* const from = logits + image * p.image_step;
    const auto classify = [&]<int kRows>() {
      for (; y + kRows <= end; y += kRows) {
        int found[kRows];
        classify_rows(p, tile, from, rows, columns.in_size, y, found);
        const int64_t at = (image * rows.out_size + y) * columns.out_size + x;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (x < columns.out_size) {
            store_label(labels, label_bits, at + r * columns.out_size, found[r]);
          }
        }
      }
    };
    classify.template operator()<4>();
    classify.template operator()<2>();
    classify.template operator()<1>();
  }
}

Tensor upsample_argmax_cuda(const Tensor& logits,  // [N, C, h, w]
                            std::vector<int64_t> output_size, bool align_corners, int64_t label_bits) {
  const Upsample2dShape s = upsample2d_shape("upsample_argmax", logits, output_size);
  const ScalarType dtype = label_dtype(logits, label_bits);
  const Tensor dense = to_dense(logits, s.channels_last);
  Tensor labels = empty({s.batch, s.out_h, s.out_w}, dtype, logits);  // [N, H, W]
  if (labels.numel() == 0) {
    return labels;
  }
  STD_TORCH_CHECK(s.channels <= INT32_MAX && s.in_w <= INT32_MAX && s.out_h <= INT32_MAX,
                  "upsample_argmax: expected sizes below 2^31, got ", shape_string(logits));
  const DeviceScope scope(logits);
  dispatch_floating(logits.scalar_type(), "upsample_argmax", [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const auto rows = bilinear_axis<T>(s.in_h, s.out_h, align_corners);
    const auto columns = bilinear_axis<T>(s.in_w, s.out_w, align_corners);
    const ArgmaxPlan plan(s, columns);
    const int64_t items = plan.batch * s.in_h * plan.parts * plan.tiles;
    launch(upsample_argmax_kernel<scalar_t, T>, blocks_for(items, kThreads / kWarp), kThreads,
           plan.shared_bytes<T>() * (kThreads / kWarp), scope.stream(), plan, rows, columns,
           static_cast<const scalar_t*>(dense.const_data_ptr()), labels.mutable_data_ptr(), label_bits);
  });
  return labels;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax_cuda));
}

}  // namespace segkernels
