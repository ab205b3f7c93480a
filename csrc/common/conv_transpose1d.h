// Transposed convolution of sequences: that of planes, with a height of 1, on any device.
#pragma once

#include <optional>
#include <tuple>

#include "conv_transpose2d.h"

namespace segkernels {

// [A, B, L] as [A, B, 1, L]. Dense first: strides of a permuted sequence would read as channels_last.
inline Tensor row_of_plane(const char* op, const char* name, const Tensor& tensor) {
  check_dim(tensor, 3, op, name);
  return torch::stable::unsqueeze(torch::stable::contiguous(tensor), 2);
}

template <auto kForward>
Tensor conv_transpose1d_by_planes(const Tensor& input,                // [N, Cin, L]
                                  const Tensor& weight,               // [Cin, Cout / groups, K]
                                  const std::optional<Tensor>& bias,  // [Cout]
                                  int64_t stride, int64_t padding, int64_t output_padding, int64_t groups,
                                  int64_t dilation) {
  const char* op = "conv_transpose1d";
  const Tensor output =
      kForward(row_of_plane(op, "input", input), row_of_plane(op, "weight", weight), bias, {1, stride}, {0, padding},
               {0, output_padding}, groups, {1, dilation});  // [N, Cout, 1, OL]
  return torch::stable::squeeze(output, 2);
}

// Gradients that are not asked for come back empty.
template <auto kBackward>
std::tuple<Tensor, Tensor, Tensor> conv_transpose1d_backward_by_planes(const Tensor& grad_output,  // [N, Cout, OL]
                                                                       const Tensor& input,        // [N, Cin, L]
                                                                       const Tensor& weight,  // [Cin, Cout / groups, K]
                                                                       int64_t stride, int64_t padding,
                                                                       int64_t output_padding, int64_t groups,
                                                                       int64_t dilation, bool need_input,
                                                                       bool need_weight, bool need_bias) {
  const char* op = "conv_transpose1d_backward";
  const auto [grad_input, grad_weight, grad_bias] =
      kBackward(row_of_plane(op, "grad_output", grad_output), row_of_plane(op, "input", input),
                row_of_plane(op, "weight", weight), {1, stride}, {0, padding}, {0, output_padding}, groups,
                {1, dilation}, need_input, need_weight, need_bias);
  return {need_input ? torch::stable::squeeze(grad_input, 2) : grad_input,
          need_weight ? torch::stable::squeeze(grad_weight, 2) : grad_weight, grad_bias};
}

}  // namespace segkernels
