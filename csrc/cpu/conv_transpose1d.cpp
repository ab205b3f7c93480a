// Transposed convolution of sequences on the CPU: that of planes, with a height of 1.
#include <torch/csrc/stable/library.h>

#include "conv_transpose2d.h"

namespace segkernels {
namespace {

// [A, B, L] as [A, B, 1, L]. Dense first: strides of a permuted sequence would read as channels_last.
Tensor row(const char* op, const char* name, const Tensor& tensor) {
  check_dim(tensor, 3, op, name);
  return torch::stable::unsqueeze(torch::stable::contiguous(tensor), 2);
}

Tensor conv_transpose1d_cpu(const Tensor& input,                // [N, Cin, L]
                            const Tensor& weight,               // [Cin, Cout / groups, K]
                            const std::optional<Tensor>& bias,  // [Cout]
                            int64_t stride, int64_t padding, int64_t output_padding, int64_t groups, int64_t dilation) {
  const char* op = "conv_transpose1d";
  const Tensor output =
      conv_transpose2d_cpu(row(op, "input", input), row(op, "weight", weight), bias, {1, stride}, {0, padding},
                           {0, output_padding}, groups, {1, dilation});  // [N, Cout, 1, OL]
  return torch::stable::squeeze(output, 2);
}

// Gradients that are not asked for come back empty.
std::tuple<Tensor, Tensor, Tensor> conv_transpose1d_backward_cpu(const Tensor& grad_output,  // [N, Cout, OL]
                                                                 const Tensor& input,        // [N, Cin, L]
                                                                 const Tensor& weight,       // [Cin, Cout / groups, K]
                                                                 int64_t stride, int64_t padding,
                                                                 int64_t output_padding, int64_t groups,
                                                                 int64_t dilation, bool need_input, bool need_weight,
                                                                 bool need_bias) {
  const char* op = "conv_transpose1d_backward";
  const auto [grad_input, grad_weight, grad_bias] = conv_transpose2d_backward_cpu(
      row(op, "grad_output", grad_output), row(op, "input", input), row(op, "weight", weight), {1, stride},
      {0, padding}, {0, output_padding}, groups, {1, dilation}, need_input, need_weight, need_bias);
  return {need_input ? torch::stable::squeeze(grad_input, 2) : grad_input,
          need_weight ? torch::stable::squeeze(grad_weight, 2) : grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("conv_transpose1d", TORCH_BOX(&conv_transpose1d_cpu));
  m.impl("conv_transpose1d_backward", TORCH_BOX(&conv_transpose1d_backward_cpu));
}

}  // namespace segkernels
