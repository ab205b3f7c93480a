// Confusion matrix on the GPU, from labels or straight from logits. Every block counts pairs in a table of its own in
// shared memory. A thread holds the pair it saw last and counts its run, so that an image of one class, whose pairs all
// fall on one counter, is no slower than any other. Counts are integers: the order of the atomics does not matter.
#include "../common/confusion_matrix.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "../common/bilinear.h"
#include "../common/cuda.cuh"
#include "../common/dispatch.h"

namespace segkernels {
namespace {

using counter_t = unsigned long long;

constexpr int kUnroll = 4;  // pixels of a thread whose loads are under way at once
constexpr int64_t kChunk = kThreads * kUnroll;
constexpr size_t kSharedTable = 96 * 1024;  // two blocks fit a multiprocessor from sm_80 on

// Labels of any integer dtype as rows or columns of the table: bin C holds ignored ones, bin C + 1 those outside [0,
// C).
struct LabelBins {
  const void* data;
  ScalarType dtype;
  int64_t classes, ignored;
  bool ignores;

  LabelBins(const Tensor& labels, int64_t classes_, std::optional<int64_t> ignore_index)
      : data(labels.const_data_ptr()),
        dtype(labels.scalar_type()),
        classes(classes_),
        ignored(ignore_index.value_or(0)),
        ignores(ignore_index.has_value()) {
    STD_TORCH_CHECK(dtype == ScalarType::Long || dtype == ScalarType::Int || dtype == ScalarType::Short ||
                        dtype == ScalarType::Char || dtype == ScalarType::Byte || dtype == ScalarType::Bool,
                    "confusion_matrix: expected labels of an integer dtype or bool, got ", dtype);
  }
  __device__ int64_t label(int64_t i) const {
    switch (dtype) {
      case ScalarType::Long:
        return static_cast<const int64_t*>(data)[i];
      case ScalarType::Int:
        return static_cast<const int32_t*>(data)[i];
      case ScalarType::Short:
        return static_cast<const int16_t*>(data)[i];
      case ScalarType::Char:
        return static_cast<const int8_t*>(data)[i];
      default:
        return static_cast<const uint8_t*>(data)[i];
    }
  }
  __device__ int64_t bin(int64_t i) const {
    const int64_t value = label(i);
    return ignores && value == ignored ? classes : (value >= 0 && value < classes ? value : classes + 1);
  }
};

// Where the predicted classes come from: find() gives the columns of `kUnroll` pixels of an image, those not `inside`
// being of no matter.
struct FromLabels {
  LabelBins labels;
  int64_t pixels;

  __device__ void find(int64_t image, const int64_t (&at)[kUnroll], const bool (&inside)[kUnroll],
                       int64_t (&columns)[kUnroll]) const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      columns[u] = inside[u] ? labels.bin(image * pixels + at[u]) : 0;
    }
  }
};

// The first of the largest values; NaN is larger than all numbers.
template <typename T>
__device__ __forceinline__ bool beats(T value, T best) {
  return value > best || (isnan(value) && !isnan(best));
}

template <typename scalar_t>
struct FromLogits {
  using T = accumulate_t<scalar_t>;
  const scalar_t* data;
  int64_t classes, image_step, class_step, pixel_step;

  __device__ void find(int64_t image, const int64_t (&at)[kUnroll], const bool (&inside)[kUnroll],
                       int64_t (&columns)[kUnroll]) const {
    const scalar_t* from = data + image * image_step;
    T best[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      best[u] = inside[u] ? static_cast<T>(from[at[u] * pixel_step]) : T(0);
      columns[u] = 0;
    }
    for (int64_t c = 1; c < classes; ++c) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const T value = inside[u] ? static_cast<T>(from[c * class_step + at[u] * pixel_step]) : T(0);
        if (beats(value, best[u])) {
          best[u] = value;
          columns[u] = c;
        }
      }
    }
  }
};

// Logits smaller than the target: the four around each pixel are read from the cache.
template <typename scalar_t>
struct FromSmallLogits {
  using T = accumulate_t<scalar_t>;
  const scalar_t* data;
  int64_t classes, image_step, class_step, pixel_step;
  BilinearAxis<T> rows, columns_axis;

  __device__ void find(int64_t image, const int64_t (&at)[kUnroll], const bool (&inside)[kUnroll],
                       int64_t (&columns)[kUnroll]) const {
    const scalar_t* from = data + image * image_step;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      columns[u] = 0;
      if (!inside[u]) {
        continue;
      }
      const uint32_t width = static_cast<uint32_t>(columns_axis.out_size);
      const uint32_t y = static_cast<uint32_t>(at[u]) / width, x = static_cast<uint32_t>(at[u]) - y * width;
      const BilinearTap<T> row = rows.tap(y), column = columns_axis.tap(x);
      const int64_t corners[4] = {(row.low * columns_axis.in_size + column.low) * pixel_step,
                                  (row.low * columns_axis.in_size + column.high) * pixel_step,
                                  (row.high * columns_axis.in_size + column.low) * pixel_step,
                                  (row.high * columns_axis.in_size + column.high) * pixel_step};
      T best = 0;
      for (int64_t c = 0; c < classes; ++c) {
        const scalar_t* plane = from + c * class_step;
        const T above = static_cast<T>(plane[corners[0]]) * column.low_weight +
                        static_cast<T>(plane[corners[1]]) * column.high_weight;
        const T below = static_cast<T>(plane[corners[2]]) * column.low_weight +
                        static_cast<T>(plane[corners[3]]) * column.high_weight;
        const T value = above * row.low_weight + below * row.high_weight;
        if (c == 0 || beats(value, best)) {
          best = value;
          columns[u] = c;
        }
      }
    }
  }
};

struct Counts {
  int64_t classes;
  counter_t* matrix;   // [C, C]
  counter_t* invalid;  // [2]: predicted, target labels outside [0, C)

  __device__ void add(int64_t row, int64_t column, counter_t count) const {
    if (row < classes && column < classes) {
      atomicAdd(matrix + row * classes + column, count);
    }
    if (column == classes + 1) {
      atomicAdd(invalid, count);
    }
    if (row == classes + 1) {
      atomicAdd(invalid + 1, count);
    }
  }
};

// Counts into the block's table, or, where that does not fit, straight into the matrix.
struct RunCounter {
  unsigned int* table;
  Counts counts;
  int64_t row = 0, column = 0;
  unsigned int count = 0;

  __device__ void add(int64_t new_row, int64_t new_column) {
    if (new_row != row || new_column != column) {
      flush();
      row = new_row;
      column = new_column;
    }
    ++count;
  }
  __device__ void flush() {
    if (count > 0 && table != nullptr) {
      atomicAdd(table + row * (counts.classes + 2) + column, count);
    } else if (count > 0) {
      counts.add(row, column, count);
    }
    count = 0;
  }
};

template <typename Source>
__global__ void __launch_bounds__(kThreads, 2)
    confusion_matrix_kernel(Source prediction, LabelBins target, int64_t images, int64_t pixels, int64_t chunks,
                            Counts counts, bool shared) {
  unsigned int* const table = shared ? dynamic_shared<unsigned int>() : nullptr;
  const int64_t size = counts.classes + 2;
  if (shared) {
    for (int64_t i = threadIdx.x; i < size * size; i += kThreads) {
      table[i] = 0;
    }
    __syncthreads();
  }
  RunCounter counter{table, counts};
  for (int64_t work = blockIdx.x; work < images * chunks; work += gridDim.x) {
    const int64_t image = work / chunks;
    const int64_t first = (work - image * chunks) * kChunk + threadIdx.x;
    int64_t at[kUnroll], rows[kUnroll], columns[kUnroll];
    bool inside[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      at[u] = first + u * kThreads;
      inside[u] = at[u] < pixels;
      rows[u] = inside[u] ? target.bin(image * pixels + at[u]) : 0;
    }
    prediction.find(image, at, inside, columns);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (inside[u]) {
        counter.add(rows[u], columns[u]);
      }
    }
  }
  counter.flush();
  if (shared) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size * size; i += kThreads) {
      if (table[i] > 0) {
        counts.add(i / size, i % size, table[i]);
      }
    }
  }
}

template <typename Source>
void count(const Source& prediction, const LabelBins& target, int64_t images, int64_t pixels, const Counts& counts,
           const DeviceScope& scope) {
  const int64_t chunks = (pixels + kChunk - 1) / kChunk;
  if (images * chunks == 0) {
    return;
  }
  const int64_t size = counts.classes + 2;
  const bool shared = size <= 1024 && size * size * sizeof(unsigned int) <= kSharedTable;
  // A table is worth its zeroing and its flush: few blocks with much work each.
  const int64_t blocks = std::min<int64_t>(images * chunks, int64_t{4} * scope.multiprocessors());
  launch(confusion_matrix_kernel<Source>, static_cast<unsigned int>(shared ? blocks : blocks_for(images * chunks, 1)),
         kThreads, shared ? size * size * sizeof(unsigned int) : 0, scope.stream(), prediction, target, images, pixels,
         chunks, counts, shared);
}

std::tuple<Tensor, Tensor> confusion_matrix_cuda(const Tensor& prediction,  // [N, *] labels or [N, C, *] logits
                                                 const Tensor& target,      // [N, *]
                                                 int64_t num_classes, std::optional<int64_t> ignore_index) {
  check_num_classes(num_classes);
  const Tensor truth = torch::stable::contiguous(target);
  const LabelBins targets(truth, num_classes, ignore_index);
  Tensor matrix = empty({num_classes, num_classes}, ScalarType::Long, target);
  Tensor invalid = empty({2}, ScalarType::Long, target);
  torch::stable::zero_(matrix);
  torch::stable::zero_(invalid);
  const Counts counts{num_classes, static_cast<counter_t*>(matrix.mutable_data_ptr()),
                      static_cast<counter_t*>(invalid.mutable_data_ptr())};
  const DeviceScope scope(target);
  const ScalarType dtype = prediction.scalar_type();
  if (!is_floating(dtype)) {
    check_same_shape(prediction, target, "confusion_matrix", "prediction", "target");
    // An ignored class still counts where it is predicted; a label outside [0, C) has no column.
    const bool is_class = ignore_index.has_value() && *ignore_index >= 0 && *ignore_index < num_classes;
    const Tensor labels = torch::stable::contiguous(prediction);
    const LabelBins predicted(labels, num_classes, is_class ? std::nullopt : ignore_index);
    count(FromLabels{predicted, target.numel()}, targets, 1, target.numel(), counts, scope);
    return {matrix, invalid};
  }
  const bool upsampled = check_confusion_logits(prediction, target, num_classes);
  const bool innermost = channels_innermost(prediction);
  const Tensor values = innermost ? prediction : torch::stable::contiguous(prediction);
  const int64_t images = values.size(0);
  const int64_t plane = images ? values.numel() / (images * num_classes) : 0;
  const int64_t class_step = innermost ? 1 : plane, pixel_step = innermost ? num_classes : 1;
  dispatch_floating(dtype, "confusion_matrix", [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const scalar_t* data = static_cast<const scalar_t*>(values.const_data_ptr());
    if (!upsampled) {
      // Channels innermost, all images are one run of pixels.
      count(FromLogits<scalar_t>{data, num_classes, plane * num_classes, class_step, pixel_step}, targets,
            innermost ? 1 : images, innermost ? images * plane : plane, counts, scope);
      return;
    }
    const int64_t height = target.size(1), width = target.size(2);
    STD_TORCH_CHECK(height * width <= INT32_MAX, "confusion_matrix: expected a target of less than 2^31 pixels, got ",
                    shape_string(target));
    count(FromSmallLogits<scalar_t>{data, num_classes, plane * num_classes, class_step, pixel_step,
                                    bilinear_axis<T>(values.size(2), height), bilinear_axis<T>(values.size(3), width)},
          targets, images, height * width, counts, scope);
  });
  return {matrix, invalid};
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("confusion_matrix", TORCH_BOX(&confusion_matrix_cuda));
}

}  // namespace segkernels
