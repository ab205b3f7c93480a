// Geometry of a depthwise-separable convolution: shapes are checked and named once, for every tier.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "conv2d.h"

namespace segkernels {

struct SeparableParams {
  int64_t batch;
  int64_t channels, in_h, in_w;
  int64_t hidden;  // channels between the two convolutions
  int64_t out_channels, out_h, out_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  bool relu;

  int64_t taps() const {
    return kernel_h * kernel_w;
  }
  int64_t multiplier() const {
    return hidden / channels;
  }
  int64_t out_plane() const {
    return out_h * out_w;
  }
  // Output rows of all images.
  int64_t rows() const {
    return batch * out_h;
  }
};

inline SeparableParams separable_params(const char* op, const Tensor& input, const Tensor& depthwise_weight,
                                        const Tensor& pointwise_weight, const IntList& stride, const IntList& padding,
                                        const IntList& dilation, bool relu) {
  check_dim(input, 4, op, "input");
  check_dim(depthwise_weight, 4, op, "depthwise_weight");
  check_dim(pointwise_weight, 4, op, "pointwise_weight");
  check_same_dtype(input, depthwise_weight, op, "input", "depthwise_weight");
  check_same_dtype(input, pointwise_weight, op, "input", "pointwise_weight");
  SeparableParams p{};
  set_window(p, input, depthwise_weight, stride, padding, dilation);
  set_convolved_size(p);
  p.channels = input.size(1);
  p.hidden = depthwise_weight.size(0);
  p.out_channels = pointwise_weight.size(0);
  p.relu = relu;
  STD_TORCH_CHECK(p.channels > 0 && p.hidden > 0 && p.hidden % p.channels == 0 && depthwise_weight.size(1) == 1, op,
                  ": expected depthwise_weight [C * M, 1, KH, KW] with C = ", p.channels, ", got shape ",
                  shape_string(depthwise_weight));
  STD_TORCH_CHECK(
      pointwise_weight.size(1) == p.hidden && pointwise_weight.size(2) == 1 && pointwise_weight.size(3) == 1, op,
      ": expected pointwise_weight [O, ", p.hidden, ", 1, 1], got shape ", shape_string(pointwise_weight));
  STD_TORCH_CHECK(p.in_h > 0 && p.in_w > 0 && p.out_h > 0 && p.out_w > 0, op, ": the output size ", p.out_h, "x",
                  p.out_w, " of input ", shape_string(input), " is too small");
  return p;
}

}  // namespace segkernels
