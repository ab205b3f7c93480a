// Transposed convolution of sequences on the CPU: that of planes, with a height of 1.
#include "../common/conv_transpose1d.h"

#include <torch/csrc/stable/library.h>

#include "conv_transpose2d.h"

namespace segkernels {
namespace {

Tensor conv_transpose1d_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                            int64_t stride, int64_t padding, int64_t output_padding, int64_t groups, int64_t dilation) {
  return conv_transpose1d_by_planes<conv_transpose2d_cpu>(input, weight, bias, stride, padding, output_padding, groups,
                                                          dilation);
}

std::tuple<Tensor, Tensor, Tensor> conv_transpose1d_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                                 const Tensor& weight, int64_t stride, int64_t padding,
                                                                 int64_t output_padding, int64_t groups,
                                                                 int64_t dilation, bool need_input, bool need_weight,
                                                                 bool need_bias) {
  return conv_transpose1d_backward_by_planes<conv_transpose2d_backward_cpu>(grad_output, input, weight, stride, padding,
                                                                            output_padding, groups, dilation,
                                                                            need_input, need_weight, need_bias);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("conv_transpose1d", TORCH_BOX(&conv_transpose1d_cpu));
  m.impl("conv_transpose1d_backward", TORCH_BOX(&conv_transpose1d_backward_cpu));
}

}  // namespace segkernels
