// Depthwise-separable convolution on the GPU: this package's depthwise kernel with bias and activation, then the
// vendor's 1x1 convolution, whose tensor-core kernels hold the arithmetic. The hidden map lives between the two and is
// not kept for backward, which computes it again.
#include "../common/depthwise_separable_conv2d.h"

#include <torch/csrc/stable/library.h>

#include <array>

#include "../common/vendor.h"
#include "conv2d_depthwise.cuh"

namespace segkernels {
namespace {

const VendorConvolution& pointwise() {
  static const VendorConvolution convolution{{1, 1}, {0, 0}, {1, 1}, {0, 0}, false, 1};
  return convolution;
}

// values where the activation passed, 0 elsewhere; all three in one dense layout.
template <typename scalar_t>
__global__ void mask_kernel(int64_t count, const scalar_t* values, const scalar_t* activated, scalar_t* to) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    to[i] = static_cast<accumulate_t<scalar_t>>(activated[i]) > 0 ? values[i] : scalar_t(0);
  }
}

Tensor masked(const Tensor& values, const Tensor& activated, bool channels_last) {
  const Tensor v = to_dense(values, channels_last);
  const Tensor a = to_dense(activated, channels_last);
  Tensor result = empty_nchw(v.size(0), v.size(1), v.size(2), v.size(3), v.scalar_type(), v, channels_last);
  const DeviceScope scope(v);
  dispatch_floating(v.scalar_type(), "depthwise_separable_conv2d_backward", [&]<typename scalar_t>() {
    launch(mask_kernel<scalar_t>, blocks_for(v.numel()), kThreads, 0, scope.stream(), v.numel(),
           static_cast<const scalar_t*>(v.const_data_ptr()), static_cast<const scalar_t*>(a.const_data_ptr()),
           static_cast<scalar_t*>(result.mutable_data_ptr()));
  });
  return result;
}

// The depthwise half, activated where `relu` asks for it: [N, C * M, OH, OW].
Tensor hidden_map(const Conv2dParams& p, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                  bool relu, bool channels_last) {
  Tensor hidden = empty_nchw(p.batch, p.out_channels, p.out_h, p.out_w, input.scalar_type(), input, channels_last);
  DepthwisePlan plan = depthwise_plan(p);
  plan.relu = relu;
  const Tensor b = bias ? torch::stable::contiguous(*bias) : Tensor();
  run_depthwise(plan, to_dense(input, channels_last), torch::stable::contiguous(weight), bias ? &b : nullptr, hidden,
                channels_last);
  return hidden;
}

Tensor depthwise_separable_conv2d_cuda(const Tensor& input,                          // [N, C, H, W]
                                       const Tensor& depthwise_weight,               // [C * M, 1, KH, KW]
                                       const Tensor& pointwise_weight,               // [O, C * M, 1, 1]
                                       const std::optional<Tensor>& depthwise_bias,  // [C * M]
                                       const std::optional<Tensor>& pointwise_bias,  // [O]
                                       IntList stride, IntList padding, IntList dilation, bool relu) {
  const char* op = "depthwise_separable_conv2d";
  const SeparableParams s =
      separable_params(op, input, depthwise_weight, pointwise_weight, stride, padding, dilation, relu);
  const bool channels_last = is_channels_last(input);
  if (s.batch * s.out_channels == 0) {
    return empty_nchw(s.batch, s.out_channels, s.out_h, s.out_w, input.scalar_type(), input, channels_last);
  }
  const Conv2dParams p = conv2d_params(op, input, depthwise_weight, stride, padding, dilation, s.channels);
  const Tensor hidden = hidden_map(p, input, depthwise_weight, depthwise_bias, relu, channels_last);
  const Tensor output = to_dense(pointwise().forward(hidden, pointwise_weight, pointwise_bias), channels_last);
  if (relu) {
    StableIValue stack[] = {torch::stable::detail::from(output)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::relu_", "", stack, TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }
  return output;
}

// `output` stands for the activation: absent without one. Gradients that are not asked for come back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> depthwise_separable_conv2d_backward_cuda(
    const Tensor& grad_output,                    // [N, O, OH, OW]
    const std::optional<Tensor>& output,          // [N, O, OH, OW]
    const Tensor& input,                          // [N, C, H, W]
    const Tensor& depthwise_weight,               // [C * M, 1, KH, KW]
    const Tensor& pointwise_weight,               // [O, C * M, 1, 1]
    const std::optional<Tensor>& depthwise_bias,  // [C * M]
    IntList stride, IntList padding, IntList dilation, bool need_input, bool need_depthwise_weight,
    bool need_pointwise_weight, bool need_depthwise_bias, bool need_pointwise_bias) {
  const char* op = "depthwise_separable_conv2d_backward";
  const SeparableParams s =
      separable_params(op, input, depthwise_weight, pointwise_weight, stride, padding, dilation, output.has_value());
  const bool channels_last = is_channels_last(input);
  const Tensor none = torch::stable::new_empty(input, {0});
  const bool need_hidden = need_input || need_depthwise_weight || need_depthwise_bias;
  const Conv2dParams p = conv2d_params(op, input, depthwise_weight, stride, padding, dilation, s.channels);
  if (grad_output.numel() == 0) {
    const auto zeros = [&](bool needed, const IntList& size) {
      Tensor grad = torch::stable::new_empty(input, needed ? size : IntList{0});
      return torch::stable::zero_(grad);
    };
    return {zeros(need_input, {s.batch, s.channels, s.in_h, s.in_w}),
            zeros(need_depthwise_weight, {s.hidden, 1, s.kernel_h, s.kernel_w}),
            zeros(need_pointwise_weight, {s.out_channels, s.hidden, 1, 1}), zeros(need_depthwise_bias, {s.hidden}),
            zeros(need_pointwise_bias, {s.out_channels})};
  }
  const Tensor hidden = hidden_map(p, input, depthwise_weight, depthwise_bias, output.has_value(), channels_last);
  const Tensor grad = output ? masked(grad_output, *output, channels_last) : to_dense(grad_output, channels_last);
  const auto outer =
      pointwise().backward(grad, hidden, pointwise_weight, {need_hidden, need_pointwise_weight, need_pointwise_bias});
  const Tensor grad_pointwise = outer[1] ? to_dense(*outer[1], false) : none;
  if (!need_hidden) {
    return {none, none, grad_pointwise, none, outer[2].value_or(none)};
  }
  const Tensor grad_hidden = output ? masked(*outer[0], hidden, channels_last) : *outer[0];
  const auto [grad_input, grad_depthwise, grad_bias] = depthwise_backward(
      p, grad_hidden, input, depthwise_weight, need_input, need_depthwise_weight, need_depthwise_bias);
  return {grad_input, grad_depthwise, grad_pointwise, grad_bias, outer[2].value_or(none)};
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("depthwise_separable_conv2d", TORCH_BOX(&depthwise_separable_conv2d_cuda));
  m.impl("depthwise_separable_conv2d_backward", TORCH_BOX(&depthwise_separable_conv2d_backward_cuda));
}

}  // namespace segkernels
