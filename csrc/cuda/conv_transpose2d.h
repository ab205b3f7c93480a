// The host functions of conv_transpose2d, which conv_transpose1d calls with a height of 1.
#pragma once

#include <optional>
#include <tuple>

#include "../common/conv_transpose2d.h"

namespace segkernels {

Tensor conv_transpose2d_cuda(const Tensor& input,                // [N, Cin, H, W]
                             const Tensor& weight,               // [Cin, Cout / groups, KH, KW]
                             const std::optional<Tensor>& bias,  // [Cout]
                             IntList stride, IntList padding, IntList output_padding, int64_t groups, IntList dilation);

// Gradients that are not asked for come back empty.
std::tuple<Tensor, Tensor, Tensor> conv_transpose2d_backward_cuda(const Tensor& grad_output,  // [N, Cout, OH, OW]
                                                                  const Tensor& input,        // [N, Cin, H, W]
                                                                  const Tensor& weight,  // [Cin, Cout / groups, KH, KW]
                                                                  IntList stride, IntList padding,
                                                                  IntList output_padding, int64_t groups,
                                                                  IntList dilation, bool need_input, bool need_weight,
                                                                  bool need_bias);

}  // namespace segkernels
