// Geometry of max-pooling: sizes and, for every tap of the window, the outputs for which it lies inside the plane.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"

namespace segkernels {

using IntList = std::vector<int64_t>;

struct MaxPool2dParams {
  int64_t batch, channels;
  int64_t in_h, in_w;
  int64_t out_h, out_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  bool channels_last;

  int64_t planes() const {
    return batch * channels;
  }
  int64_t in_plane() const {
    return in_h * in_w;
  }
  int64_t out_plane() const {
    return out_h * out_w;
  }
  int64_t window() const {
    return kernel_h * kernel_w;
  }
  // No input element lies in two windows.
  bool disjoint_windows() const {
    return stride_h > dilation_h * (kernel_h - 1) && stride_w > dilation_w * (kernel_w - 1);
  }
};

// Outputs along one axis whose tap number k is inside the input: [begin, end). Both ends fall as k grows.
struct TapRange {
  int64_t begin, end;

  bool contains(int64_t output) const {
    return output >= begin && output < end;
  }
};

inline std::vector<TapRange> tap_ranges(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                                        int64_t dilation) {
  std::vector<TapRange> ranges(kernel);
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t before = pad - k * dilation;  // outputs with x * stride < before start left of the input
    const int64_t begin = before > 0 ? (before + stride - 1) / stride : 0;
    const int64_t room = in - 1 + before;  // largest x * stride that is still inside
    const int64_t end = room < 0 ? 0 : room / stride + 1;
    ranges[k].begin = std::min(begin, out);
    ranges[k].end = std::clamp(end, ranges[k].begin, out);
  }
  return ranges;
}

// torch's rule: with ceil_mode a last window is kept only when it starts inside the input or its leading padding.
inline int64_t pooled_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool ceil_mode) {
  const int64_t room = in + 2 * pad - dilation * (kernel - 1) - 1;
  if (room < 0 && !(ceil_mode && room + stride > 0)) {
    return 0;
  }
  const int64_t size = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  return ceil_mode && (size - 1) * stride >= in + pad ? size - 1 : size;
}

// Geometry and, for every tap, its outputs: what the CPU kernels walk over.
struct MaxPool2dPlan : MaxPool2dParams {
  std::vector<TapRange> rows, columns;

  explicit MaxPool2dPlan(const MaxPool2dParams& p)
      : MaxPool2dParams(p),
        rows(tap_ranges(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h)),
        columns(tap_ranges(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w)) {}
};

inline void check_pool_window(const IntList& kernel_size, const IntList& stride, const IntList& padding,
                              const IntList& dilation, const char* op) {
  for (int d = 0; d < 2; ++d) {
    STD_TORCH_CHECK(kernel_size[d] > 0 && stride[d] > 0 && dilation[d] > 0 && padding[d] >= 0, op,
                    ": expected kernel_size, stride and dilation of at least 1 and padding of at least 0, got ",
                    kernel_size[d], ", ", stride[d], ", ", dilation[d], " and ", padding[d]);
    // Bounds what the geometry multiplies, so that nothing overflows.
    STD_TORCH_CHECK(kernel_size[d] <= INT32_MAX && stride[d] <= INT32_MAX && dilation[d] <= INT32_MAX, op,
                    ": expected kernel_size, stride and dilation below 2^31");
    STD_TORCH_CHECK(2 * padding[d] <= dilation[d] * (kernel_size[d] - 1) + 1, op,
                    ": expected padding of at most half the kernel, got ", padding[d]);
  }
  STD_TORCH_CHECK(kernel_size[0] * kernel_size[1] <= INT32_MAX, op, ": expected a window of less than 2^31 positions");
}

inline MaxPool2dParams max_pool2d_params(const Tensor& input,  // [N, C, H, W]
                                         const IntList& kernel_size, const IntList& stride, const IntList& padding,
                                         const IntList& dilation, bool ceil_mode, int64_t index_bits, const char* op) {
  check_dim(input, 4, op, "input");
  check_pool_window(kernel_size, stride, padding, dilation, op);
  STD_TORCH_CHECK(index_bits == 0 || index_bits == 64 || (index_bits == 8 && kernel_size[0] * kernel_size[1] <= 256),
                  op, ": expected index_bits of 0, 8 (windows of at most 256 positions) or 64, got ", index_bits);
  const int64_t out_h = pooled_size(input.size(2), kernel_size[0], stride[0], padding[0], dilation[0], ceil_mode);
  const int64_t out_w = pooled_size(input.size(3), kernel_size[1], stride[1], padding[1], dilation[1], ceil_mode);
  STD_TORCH_CHECK(out_h > 0 && out_w > 0, op, ": the output of input ", shape_string(input), " would be ", out_h, "x",
                  out_w);
  return {input.size(0), input.size(1),  input.size(2),  input.size(3), out_h,
          out_w,         kernel_size[0], kernel_size[1], stride[0],     stride[1],
          padding[0],    padding[1],     dilation[0],    dilation[1],   is_channels_last(input)};
}

inline MaxPool2dParams max_pool2d_backward_params(const Tensor& grad_output,  // [N, C, h, w]
                                                  const Tensor& indices,      // [N, C, h, w]
                                                  const IntList& input_size, const IntList& kernel_size,
                                                  const IntList& stride, const IntList& padding,
                                                  const IntList& dilation, const char* op) {
  check_dim(grad_output, 4, op, "grad_output");
  check_same_shape(grad_output, indices, op, "grad_output", "indices");
  check_pool_window(kernel_size, stride, padding, dilation, op);
  STD_TORCH_CHECK(input_size[0] >= 0 && input_size[1] >= 0, op, ": expected input_size of at least 0");
  STD_TORCH_CHECK(indices.scalar_type() != ScalarType::Byte || kernel_size[0] * kernel_size[1] <= 256, op,
                  ": expected a window of at most 256 positions for uint8 indices, got ", kernel_size[0], "x",
                  kernel_size[1]);
  return {indices.size(0), indices.size(1), input_size[0],  input_size[1], indices.size(2),
          indices.size(3), kernel_size[0],  kernel_size[1], stride[0],     stride[1],
          padding[0],      padding[1],      dilation[0],    dilation[1],   is_channels_last(indices)};
}

}  // namespace segkernels
