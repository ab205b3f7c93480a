// RoI Align over one or several feature maps on the GPU: what forward and backward share. A thread owns kGroup channels
// of an output, so that the maths of a sample is done once for all of them; channels_last maps are read by vectors.
#pragma once

#include <vector>

#include "../common/boxes.h"
#include "../common/check.h"
#include "../common/cuda.cuh"
#include "../common/dispatch.h"
#include "../common/roi_align.h"

namespace segkernels {

using IntList = std::vector<int64_t>;

constexpr int kGroup = 8;  // channels of a thread
constexpr int64_t kMaxLevels = 8;

// A map of the pyramid, or its gradient.
template <typename T>
struct LevelMap {
  void* data;
  int64_t height, width;
  T scale;
  int64_t first_block;  // of the gradient's launch
};

template <typename T>
struct Pyramid {
  PyramidParams params;
  LevelMap<T> maps[kMaxLevels];
};

// Element strides of a channel and of a pixel (or bin), and whether a group of channels can be moved by vectors.
struct Layout {
  int64_t channel, pixel;
  bool vectors;
};

__host__ __device__ inline Layout layout_of(bool channels_last, int64_t channels, int64_t plane) {
  return channels_last ? Layout{1, channels, channels % kGroup == 0} : Layout{plane, 1, false};
}

inline bool aligned_for_vectors(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

template <typename scalar_t, typename T>
__device__ __forceinline__ void load_group(const scalar_t* from, const Layout& layout, int count, T (&values)[kGroup]) {
  if (layout.vectors) {
    __align__(16) scalar_t raw[kGroup];
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(raw) / 16); ++i) {
      reinterpret_cast<uint4*>(raw)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      values[i] = static_cast<T>(raw[i]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    values[i] = i < count ? static_cast<T>(from[i * layout.channel]) : T(0);
  }
}

template <typename scalar_t, typename T>
__device__ __forceinline__ void store_group(scalar_t* to, const Layout& layout, int count, const T (&values)[kGroup]) {
  if (layout.vectors) {
    __align__(16) scalar_t raw[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      raw[i] = static_cast<scalar_t>(values[i]);
    }
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(raw) / 16); ++i) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(raw)[i];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if (i < count) {
      to[i * layout.channel] = static_cast<scalar_t>(values[i]);
    }
  }
}

// Where the threads of a block write to in turn the boxes that `wanted` names: in their order, without atomics. Returns
// how many. All threads of the block call it; `counts` has room for one number a warp.
__device__ __forceinline__ int gather_in_order(bool wanted, int value, int* list, int* counts) {
  const unsigned int votes = __ballot_sync(0xffffffffu, wanted);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane == 0) {
    counts[warp] = __popc(votes);
  }
  __syncthreads();
  int before = 0, total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
    before += w < warp ? counts[w] : 0;
    total += counts[w];
  }
  if (wanted) {
    list[before + __popc(votes & ((1u << lane) - 1))] = value;
  }
  __syncthreads();
  return total;
}

inline void check_rois(const Tensor& boxes, const RoiAlignParams& p, const char* op) {
  check_dim(boxes, 2, op, "boxes");
  STD_TORCH_CHECK(boxes.size(1) == 5, op, ": expected boxes of shape [K, 5], got ", shape_string(boxes));
  STD_TORCH_CHECK(p.bins_h > 0 && p.bins_w > 0, op, ": expected output_size of at least 1, got ", p.bins_h, "x",
                  p.bins_w);
}

inline void check_levels(size_t levels, const std::vector<double>& scales, const char* op) {
  STD_TORCH_CHECK(levels > 0 && levels <= kMaxLevels && scales.size() == levels, op, ": expected 1 to ", kMaxLevels,
                  " maps and a scale for each, got ", levels, " maps and ", scales.size(), " scales");
}

}  // namespace segkernels
