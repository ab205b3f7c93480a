// Geometry of a convolution: shapes are checked and named once, for the forward and both gradients.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"

namespace segkernels {

using IntList = std::vector<int64_t>;

struct Conv2dParams {
  int64_t batch;
  int64_t in_channels, in_h, in_w;
  int64_t out_channels, out_h, out_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t groups;

  int64_t taps() const {
    return kernel_h * kernel_w;
  }
  // Every input channel has kernels of its own.
  bool depthwise() const {
    return groups == in_channels;
  }
  int64_t multiplier() const {
    return out_channels / groups;
  }
};

// What every convolution's geometry takes over from its arguments, but for the channels.
template <typename Params>
void set_window(Params& p, const Tensor& input, const Tensor& weight, const IntList& stride, const IntList& padding,
                const IntList& dilation) {
  p.batch = input.size(0);
  p.in_h = input.size(2);
  p.in_w = input.size(3);
  p.kernel_h = weight.size(2);
  p.kernel_w = weight.size(3);
  p.stride_h = stride[0];
  p.stride_w = stride[1];
  p.pad_h = padding[0];
  p.pad_w = padding[1];
  p.dilation_h = dilation[0];
  p.dilation_w = dilation[1];
}

template <typename Params>
void set_convolved_size(Params& p) {
  p.out_h = (p.in_h + 2 * p.pad_h - p.dilation_h * (p.kernel_h - 1) - 1) / p.stride_h + 1;
  p.out_w = (p.in_w + 2 * p.pad_w - p.dilation_w * (p.kernel_w - 1) - 1) / p.stride_w + 1;
}

inline Conv2dParams conv2d_params(const char* op, const Tensor& input, const Tensor& weight, const IntList& stride,
                                  const IntList& padding, const IntList& dilation, int64_t groups) {
  check_dim(input, 4, op, "input");
  check_dim(weight, 4, op, "weight");
  check_same_dtype(input, weight, op, "input", "weight");
  STD_TORCH_CHECK(groups > 0 && input.size(1) == weight.size(1) * groups && weight.size(0) % groups == 0, op,
                  ": expected input with ", weight.size(1) * groups, " channels (weight ", shape_string(weight),
                  ", groups ", groups, "), got shape ", shape_string(input));
  Conv2dParams p{};
  set_window(p, input, weight, stride, padding, dilation);
  set_convolved_size(p);
  p.in_channels = input.size(1);
  p.out_channels = weight.size(0);
  p.groups = groups;
  STD_TORCH_CHECK(
      p.in_h + 2 * p.pad_h > p.dilation_h * (p.kernel_h - 1) && p.in_w + 2 * p.pad_w > p.dilation_w * (p.kernel_w - 1),
      op, ": expected a padded input of at least the kernel's size, got input ", shape_string(input), " and weight ",
      shape_string(weight));
  return p;
}

}  // namespace segkernels
