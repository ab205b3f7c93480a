// torch's own convolution, called below the dispatcher where the measurement says that it wins.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"

namespace segkernels {

struct VendorConvolution {
  std::vector<int64_t> stride, padding, dilation, output_padding;
  bool transposed;
  int64_t groups;

  Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) const {
    using torch::stable::detail::from;
    std::array<StableIValue, 9> stack{from(input),      from(weight),         from(bias),
                                      from(stride),     from(padding),        from(dilation),
                                      from(transposed), from(output_padding), from(groups)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }

  // Gradients of input, weight and bias; those not in `mask` come back as they are on the stack and must not be read.
  std::array<std::optional<Tensor>, 3> backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                                std::array<bool, 3> mask) const {
    using torch::stable::detail::from;
    const std::optional<std::vector<int64_t>> bias_sizes = std::vector<int64_t>{grad_output.size(1)};
    std::array<StableIValue, 11> stack{from(grad_output),
                                       from(input),
                                       from(weight),
                                       from(bias_sizes),
                                       from(stride),
                                       from(padding),
                                       from(dilation),
                                       from(transposed),
                                       from(output_padding),
                                       from(groups),
                                       from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask.data(), 3))};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
    std::array<std::optional<Tensor>, 3> grads;
    for (int i = 0; i < 3; ++i) {
      const Tensor grad = torch::stable::detail::to<Tensor>(stack[i]);
      if (mask[i]) {
        grads[i] = grad;
      }
    }
    return grads;
  }
};

}  // namespace segkernels
