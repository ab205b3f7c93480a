// Convolutions of stride 1 that keep the map's size, in several dilations; a dense atrous convolution is one of them.
#pragma once

#include <optional>
#include <vector>

#include "../common/multi_dilation_conv2d.h"

namespace segkernels {

// `bias` [O] is added to every rate.
Tensor multi_dilation_forward(const Tensor& input, const std::vector<Tensor>& weights,
                              const std::vector<int64_t>& dilations, const std::optional<Tensor>& bias);

// Gradients of the input and of each weight; those that are not asked for come back empty.
std::vector<Tensor> multi_dilation_backward(const Tensor& grad_output, const Tensor& input,
                                            const std::vector<Tensor>& weights, const std::vector<int64_t>& dilations,
                                            bool need_input, bool need_weights);

}  // namespace segkernels
