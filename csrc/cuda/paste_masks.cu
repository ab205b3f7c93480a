// Pastes masks into the image on the GPU: a thread writes 16 pixels at once. Most lie outside the box, so that the
// writes of the image should take the time: 80% of the bandwidth and more.
#include "../common/paste_masks.h"

#include <torch/csrc/stable/library.h>

#include "../common/cuda.cuh"

namespace segkernels {
namespace {

constexpr int kRun = 16;  // pixels of a thread
constexpr int kRounds = 4;

// One mask [h, w] as if it had a border of zeros.
template <typename T>
struct BorderedMask {
  const T* values;
  int64_t height, width;

  __device__ T at(int64_t y, int64_t x) const {
    const bool inside = y > 0 && y <= height && x > 0 && x <= width;
    return inside ? values[(y - 1) * width + x - 1] : T(0);
  }
  __device__ T column(const PasteTap<T>& row, int64_t x) const {
    return blend(at(row.low, x), at(row.low + 1, x), row.low_weight, row.high_weight);
  }
};

// Four bytes of 0 or 1 from the four lowest bits.
__device__ __forceinline__ unsigned int spread_bits(unsigned int bits) {
  return (bits & 15u) * 0x00204081u & 0x01010101u;
}

// Runs are aligned in memory, and a plane is not: its first and last run it shares with its neighbours, byte by byte.
template <typename T>
__global__ void __launch_bounds__(kThreads) paste_masks_kernel(const T* masks,         // [N, h, w]
                                                               const T* boxes,         // [N, 4]
                                                               unsigned char* output,  // [N, H, W]
                                                               PasteMasksParams p, int64_t chunks) {
  const int64_t plane = p.image_h * p.image_w;
  const T threshold = static_cast<T>(p.threshold);
  for (int64_t work = blockIdx.x; work < p.count * chunks; work += gridDim.x) {
    const int64_t n = work / chunks;
    const PasteAxes<T> axes(p, boxes + 4 * n);
    const BorderedMask<T> mask{masks + n * p.mask_h * p.mask_w, p.mask_h, p.mask_w};
    const int64_t begin = n * plane, end = begin + plane;
    int64_t place = begin / kRun * kRun + ((work - n * chunks) * kRounds * kThreads + threadIdx.x) * kRun;
    for (int round = 0; round < kRounds && place < end; ++round, place += kThreads * kRun) {
      const int64_t inside = place > begin ? place : begin;
      int64_t y = plane <= INT32_MAX ? static_cast<unsigned int>(inside - begin) / static_cast<unsigned int>(p.image_w)
                                     : (inside - begin) / p.image_w;
      int64_t x = inside - begin - y * p.image_w;
      unsigned int run = 0;  // a bit a pixel
      const int from = static_cast<int>(inside - place);
      const int to = static_cast<int>(min(static_cast<int64_t>(kRun), end - place));
      const bool one_row = x + (to - from) <= p.image_w;
      const bool outside =
          y >= axes.rows.end ||
          (one_row && (y < axes.rows.begin || x >= axes.columns.end || x + (to - from) <= axes.columns.begin));
      if (!outside) {
        PasteTap<T> row, column;
        bool in_rows = axes.rows.tap(y, row);
#pragma unroll 1
        for (int i = from; i < to; ++i) {
          if (in_rows && axes.columns.tap(x, column)) {
            const T value = blend(mask.column(row, column.low), mask.column(row, column.low + 1), column.low_weight,
                                  column.high_weight);
            run |= value >= threshold ? 1u << i : 0u;
          }
          if (++x == p.image_w) {
            x = 0;
            in_rows = axes.rows.tap(++y, row);
          }
        }
      }
      if (to - from == kRun) {
        *reinterpret_cast<uint4*>(output + place) =
            uint4{spread_bits(run), spread_bits(run >> 4), spread_bits(run >> 8), spread_bits(run >> 12)};
      } else {
        for (int i = from; i < to; ++i) {
          output[place + i] = run >> i & 1;
        }
      }
    }
  }
}

Tensor paste_masks_cuda(const Tensor& masks,  // [N, h, w]
                        const Tensor& boxes,  // [N, 4]
                        std::vector<int64_t> image_size, double threshold, int64_t style) {
  const PasteMasksParams p = paste_masks_params(masks, boxes, image_size, threshold, style, "paste_masks");
  const ScalarType dtype = paste_type(masks, boxes);
  Tensor output = empty({p.count, p.image_h, p.image_w}, ScalarType::Bool, masks);  // [N, H, W]
  if (output.numel() == 0) {
    return output;
  }
  const DeviceScope scope(masks);
  const Tensor values = to_coordinates(masks, dtype);
  const Tensor corners = to_coordinates(boxes, dtype);
  constexpr int64_t kChunk = kThreads * kRounds * kRun;
  const int64_t chunks = (p.image_h * p.image_w + kRun - 1 + kChunk - 1) / kChunk;
  dispatch_compute(dtype, [&]<typename T>() {
    launch(paste_masks_kernel<T>, blocks_for(p.count * chunks, 1), kThreads, 0, scope.stream(),
           static_cast<const T*>(values.const_data_ptr()), static_cast<const T*>(corners.const_data_ptr()),
           static_cast<unsigned char*>(output.mutable_data_ptr()), p, chunks);
  });
  return output;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("paste_masks", TORCH_BOX(&paste_masks_cuda));
}

}  // namespace segkernels
