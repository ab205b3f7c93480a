// Geometry of max-unpooling that the CPU and the CUDA kernels share.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "check.h"
#include "dispatch.h"

#include "host_device.h"

namespace segkernels {

struct MaxUnpool2dParams {
  int64_t batch, channels;
  int64_t in_h, in_w;    // pooled plane
  int64_t out_h, out_w;  // unpooled plane
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  bool channels_last;

  SEGKERNELS_HOST_DEVICE int64_t planes() const {
    return batch * channels;
  }
  SEGKERNELS_HOST_DEVICE int64_t in_plane() const {
    return in_h * in_w;
  }
  SEGKERNELS_HOST_DEVICE int64_t out_plane() const {
    return out_h * out_w;
  }
  // No output element lies in two windows: entries that stay in their own window cannot collide.
  SEGKERNELS_HOST_DEVICE bool disjoint_windows() const {
    return stride_h >= kernel_h && stride_w >= kernel_w;
  }
};

// Flat position in the output plane of entry (y, x), or -1 when it lies outside: int64 indices are flat positions,
// uint8 ones the offset inside the window of (y, x). All arithmetic is 64-bit, so no index can wrap into the plane.
template <typename index_t>
SEGKERNELS_HOST_DEVICE int64_t unpool_position(const MaxUnpool2dParams& p, index_t index, int64_t y, int64_t x) {
  if constexpr (std::is_same_v<index_t, uint8_t>) {
    const int64_t dy = index / p.kernel_w;
    const int64_t row = y * p.stride_h - p.pad_h + dy;
    const int64_t col = x * p.stride_w - p.pad_w + (index - dy * p.kernel_w);
    const bool inside = dy < p.kernel_h && row >= 0 && row < p.out_h && col >= 0 && col < p.out_w;
    return inside ? row * p.out_w + col : -1;
  } else {
    const int64_t position = static_cast<int64_t>(index);
    return position >= 0 && position < p.out_plane() ? position : -1;
  }
}

// Whether a position lies in the window of entry (y, x).
SEGKERNELS_HOST_DEVICE bool in_own_window(const MaxUnpool2dParams& p, int64_t position, int64_t y, int64_t x) {
  const int64_t row = position / p.out_w;
  const int64_t dy = row - (y * p.stride_h - p.pad_h);
  const int64_t dx = (position - row * p.out_w) - (x * p.stride_w - p.pad_w);
  return dy >= 0 && dy < p.kernel_h && dx >= 0 && dx < p.kernel_w;
}

using IntList = std::vector<int64_t>;

inline MaxUnpool2dParams max_unpool2d_params(const Tensor& pooled, int64_t out_h, int64_t out_w,
                                             const IntList& kernel_size, const IntList& stride, const IntList& padding,
                                             bool channels_last) {
  return {pooled.size(0), pooled.size(1), pooled.size(2), pooled.size(3), out_h,      out_w,        kernel_size[0],
          kernel_size[1], stride[0],      stride[1],      padding[0],     padding[1], channels_last};
}

inline void check_same_planes(const Tensor& grad_output, const Tensor& indices, const char* op) {
  STD_TORCH_CHECK(grad_output.size(0) == indices.size(0) && grad_output.size(1) == indices.size(1), op,
                  ": expected grad_output and indices to agree in batch and channels, got ", shape_string(grad_output),
                  " and ", shape_string(indices));
}

// Unpooling moves values without looking at them: kernels are instantiated by element size, not by dtype.
template <typename F>
void dispatch_element(const Tensor& values, const char* op, F&& f) {
  dispatch_floating(values.scalar_type(), op, [&]<typename scalar_t>() {
    using bits_t = std::conditional_t<sizeof(scalar_t) == 8, uint64_t,
                                      std::conditional_t<sizeof(scalar_t) == 4, uint32_t, uint16_t>>;
    f.template operator()<bits_t>();
  });
}

}  // namespace segkernels
