// Transposed convolution of sequences on the GPU: that of planes, with a height of 1.
#include "../common/conv_transpose1d.h"

#include <torch/csrc/stable/library.h>

#include "../common/cuda.cuh"
#include "conv_transpose2d.h"

namespace segkernels {
namespace {

Tensor conv_transpose1d_cuda(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                             int64_t stride, int64_t padding, int64_t output_padding, int64_t groups,
                             int64_t dilation) {
  return conv_transpose1d_by_planes<conv_transpose2d_cuda>(input, weight, bias, stride, padding, output_padding, groups,
                                                           dilation);
}

std::tuple<Tensor, Tensor, Tensor> conv_transpose1d_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                                                  const Tensor& weight, int64_t stride, int64_t padding,
                                                                  int64_t output_padding, int64_t groups,
                                                                  int64_t dilation, bool need_input, bool need_weight,
                                                                  bool need_bias) {
  return conv_transpose1d_backward_by_planes<conv_transpose2d_backward_cuda>(grad_output, input, weight, stride,
                                                                             padding, output_padding, groups, dilation,
                                                                             need_input, need_weight, need_bias);
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("conv_transpose1d", TORCH_BOX(&conv_transpose1d_cuda));
  m.impl("conv_transpose1d_backward", TORCH_BOX(&conv_transpose1d_backward_cuda));
}

}  // namespace segkernels
