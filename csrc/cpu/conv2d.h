// Convolution on the CPU, for the operators that are made of it.
#pragma once

#include <optional>
#include <tuple>

#include "../common/conv2d.h"

namespace segkernels {

Tensor conv2d_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntList stride,
                  IntList padding, IntList dilation, int64_t groups);

// Gradients that are not asked for come back empty.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                       const Tensor& weight, IntList stride, IntList padding,
                                                       IntList dilation, int64_t groups, bool need_input,
                                                       bool need_weight, bool need_bias);

}  // namespace segkernels
