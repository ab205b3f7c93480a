// Geometry of a transposed convolution: shapes are checked and named once, for the forward and both gradients.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "conv2d.h"
#include "vendor.h"

namespace segkernels {

struct ConvTranspose2dParams {
  int64_t batch;
  int64_t in_channels, in_h, in_w;
  int64_t out_channels, out_h, out_w;  // out_channels of all groups
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t output_pad_h, output_pad_w;
  int64_t dilation_h, dilation_w;
  int64_t groups;

  int64_t taps() const {
    return kernel_h * kernel_w;
  }
  int64_t in_plane() const {
    return in_h * in_w;
  }
  int64_t out_plane() const {
    return out_h * out_w;
  }
  // Every output pixel has one input pixel and one tap: a matrix product whose result is stored as a pixel shuffle.
  bool kernel_is_stride() const {
    return kernel_h == stride_h && kernel_w == stride_w && pad_h == 0 && pad_w == 0 && output_pad_h == 0 &&
           output_pad_w == 0 && dilation_h == 1 && dilation_w == 1 && groups == 1;
  }
  // Every channel has one kernel of its own, without holes.
  bool depthwise() const {
    return groups == in_channels && out_channels == in_channels && dilation_h == 1 && dilation_w == 1 && taps() > 0;
  }
};

inline VendorConvolution vendor_convolution(const ConvTranspose2dParams& p) {
  return {{p.stride_h, p.stride_w},
          {p.pad_h, p.pad_w},
          {p.dilation_h, p.dilation_w},
          {p.output_pad_h, p.output_pad_w},
          true,
          p.groups};
}

inline ConvTranspose2dParams conv_transpose2d_params(const char* op, const Tensor& input, const Tensor& weight,
                                                     const IntList& stride, const IntList& padding,
                                                     const IntList& output_padding, int64_t groups,
                                                     const IntList& dilation) {
  check_dim(input, 4, op, "input");
  check_dim(weight, 4, op, "weight");
  check_same_dtype(input, weight, op, "input", "weight");
  STD_TORCH_CHECK(groups > 0 && input.size(1) % groups == 0 && input.size(1) == weight.size(0), op,
                  ": expected input with ", weight.size(0), " channels (weight ", shape_string(weight), ", groups ",
                  groups, "), got shape ", shape_string(input));
  ConvTranspose2dParams p{};
  set_window(p, input, weight, stride, padding, dilation);
  p.in_channels = input.size(1);
  p.out_channels = weight.size(1) * groups;
  p.output_pad_h = output_padding[0];
  p.output_pad_w = output_padding[1];
  p.groups = groups;
  p.out_h = (p.in_h - 1) * p.stride_h - 2 * p.pad_h + p.dilation_h * (p.kernel_h - 1) + p.output_pad_h + 1;
  p.out_w = (p.in_w - 1) * p.stride_w - 2 * p.pad_w + p.dilation_w * (p.kernel_w - 1) + p.output_pad_w + 1;
  STD_TORCH_CHECK(p.out_h > 0 && p.out_w > 0, op, ": the output size ", p.out_h, "x", p.out_w, " of input ",
                  shape_string(input), " is too small");
  return p;
}

// The types of a device's host functions, which conv_transpose1d calls with a height of 1.
using ConvTranspose2d = Tensor(const Tensor& input,                // [N, Cin, H, W]
                               const Tensor& weight,               // [Cin, Cout / groups, KH, KW]
                               const std::optional<Tensor>& bias,  // [Cout]
                               IntList stride, IntList padding, IntList output_padding, int64_t groups,
                               IntList dilation);

// Gradients that are not asked for come back empty.
using ConvTranspose2dBackward =
    std::tuple<Tensor, Tensor, Tensor>(const Tensor& grad_output,  // [N, Cout, OH, OW]
                                       const Tensor& input,        // [N, Cin, H, W]
                                       const Tensor& weight,       // [Cin, Cout / groups, KH, KW]
                                       IntList stride, IntList padding, IntList output_padding, int64_t groups,
                                       IntList dilation, bool need_input, bool need_weight, bool need_bias);

}  // namespace segkernels
