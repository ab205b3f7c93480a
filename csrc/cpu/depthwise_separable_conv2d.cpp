// Depthwise-separable convolution on the CPU: few channels tile by tile (depthwise_separable_tiles.h), others as this
// package's depthwise convolution and torch's product. Backward computes the hidden map again.
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>

#include "../common/vendor.h"
#include "conv2d.h"
#include "depthwise_separable_tiles.h"

namespace segkernels {
namespace {

// The measurement says: torch's product makes up for writing the hidden map where it is 1024 products a pixel or more
// (2x728x14x14 to 728: 4.0 ms, tile by tile 7.8 ms), and in channels_last everywhere. float64 is a check's dtype.
bool tiles_win(const SeparableParams& p, ScalarType dtype, bool channels_last) {
  return !channels_last && dtype != ScalarType::Double && p.hidden * p.out_channels < 1024;
}

VendorConvolution pointwise_convolution() {
  return {{1, 1}, {0, 0}, {1, 1}, {0, 0}, false, 1};
}

void rectify(Tensor& tensor) {
  StableIValue stack[]{torch::stable::detail::from(tensor)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::relu_", "", stack, TORCH_ABI_VERSION));
  tensor = torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor depthwise_separable_conv2d_cpu(const Tensor& input,                          // [N, C, H, W]
                                      const Tensor& depthwise_weight,               // [C * M, 1, KH, KW]
                                      const Tensor& pointwise_weight,               // [O, C * M, 1, 1]
                                      const std::optional<Tensor>& depthwise_bias,  // [C * M]
                                      const std::optional<Tensor>& pointwise_bias,  // [O]
                                      IntList stride, IntList padding, IntList dilation, bool relu) {
  const char* op = "depthwise_separable_conv2d";
  const SeparableParams p =
      separable_params(op, input, depthwise_weight, pointwise_weight, stride, padding, dilation, relu);
  const bool channels_last = is_channels_last(input);
  const auto dense = [&](const std::optional<Tensor>& bias, int64_t size, const char* name) -> std::optional<Tensor> {
    if (!bias) {
      return std::nullopt;
    }
    check_same_dtype(input, *bias, op, "input", name);
    STD_TORCH_CHECK(bias->numel() == size, op, ": expected ", name, " [", size, "], got shape ", shape_string(*bias));
    return torch::stable::contiguous(*bias);
  };
  const std::optional<Tensor> db = dense(depthwise_bias, p.hidden, "depthwise_bias");
  const std::optional<Tensor> pb = dense(pointwise_bias, p.out_channels, "pointwise_bias");
  if (!tiles_win(p, input.scalar_type(), channels_last)) {
    Tensor hidden = conv2d_cpu(input, depthwise_weight, db, stride, padding, dilation, p.channels);
    if (relu) {
      rectify(hidden);
    }
    Tensor output = pointwise_convolution().forward(hidden, pointwise_weight, pb);
    if (relu) {
      rectify(output);
    }
    return to_dense(output, channels_last);
  }
  Tensor output = empty_nchw(p.batch, p.out_channels, p.out_h, p.out_w, input.scalar_type(), input,
                             false);  // [N, O, OH, OW]
  if (output.numel() == 0) {
    return output;
  }
  const Tensor x = to_dense(input, false);
  const Tensor dw = torch::stable::contiguous(depthwise_weight);
  const Tensor pw = torch::stable::contiguous(pointwise_weight);
  dispatch_floating(input.scalar_type(), op, [&]<typename T>() {
    if constexpr (!std::is_same_v<T, double>) {
      const auto data = [](const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); };
      Separable<T>(p, data(x), data(dw), db ? data(*db) : nullptr, data(pw), pb ? data(*pb) : nullptr)
          .forward(static_cast<T*>(output.mutable_data_ptr()));
    }
  });
  return output;
}

// values where the activation passed, 0 elsewhere; all three in one dense layout.
template <typename T>
SEGKERNELS_CLONES void mask_values(const T* values, const T* activated, int64_t begin, int64_t end, T* to) {
  for (int64_t i = begin; i < end; ++i) {
    to[i] = activated[i] > T(0) ? values[i] : T(0);
  }
}

Tensor masked(const Tensor& values, const Tensor& activated, bool channels_last) {
  const Tensor v = to_dense(values, channels_last);
  const Tensor a = to_dense(activated, channels_last);
  Tensor result = empty_nchw(v.size(0), v.size(1), v.size(2), v.size(3), v.scalar_type(), v, channels_last);
  dispatch_floating(v.scalar_type(), "depthwise_separable_conv2d_backward", [&]<typename T>() {
    const T* from = static_cast<const T*>(v.const_data_ptr());
    const T* mask = static_cast<const T*>(a.const_data_ptr());
    T* to = static_cast<T*>(result.mutable_data_ptr());
    parallel_items(v.numel(), 1, [&](int64_t begin, int64_t end) { mask_values(from, mask, begin, end, to); });
  });
  return result;
}

// `output` stands for the activation: absent without one. Gradients that are not asked for come back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> depthwise_separable_conv2d_backward_cpu(
    const Tensor& grad_output,                    // [N, O, OH, OW]
    const std::optional<Tensor>& output,          // [N, O, OH, OW]
    const Tensor& input,                          // [N, C, H, W]
    const Tensor& depthwise_weight,               // [C * M, 1, KH, KW]
    const Tensor& pointwise_weight,               // [O, C * M, 1, 1]
    const std::optional<Tensor>& depthwise_bias,  // [C * M]
    IntList stride, IntList padding, IntList dilation, bool need_input, bool need_depthwise_weight,
    bool need_pointwise_weight, bool need_depthwise_bias, bool need_pointwise_bias) {
  const char* op = "depthwise_separable_conv2d_backward";
  const SeparableParams p =
      separable_params(op, input, depthwise_weight, pointwise_weight, stride, padding, dilation, output.has_value());
  const bool channels_last = is_channels_last(input);
  const Tensor none = torch::stable::new_empty(input, {0});
  const bool need_hidden = need_input || need_depthwise_weight || need_depthwise_bias;

  Tensor hidden = conv2d_cpu(input, depthwise_weight, depthwise_bias, stride, padding, dilation, p.channels);
  if (output) {
    hidden = masked(hidden, hidden, channels_last);
  }
  const Tensor grad = output ? masked(grad_output, *output, channels_last) : grad_output;
  const auto outer = pointwise_convolution().backward(grad, hidden, pointwise_weight,
                                                      {need_hidden, need_pointwise_weight, need_pointwise_bias});
  std::tuple<Tensor, Tensor, Tensor> inner{none, none, none};
  if (need_hidden) {
    const Tensor grad_hidden = output ? masked(*outer[0], hidden, channels_last) : *outer[0];
    inner = conv2d_backward_cpu(grad_hidden, input, depthwise_weight, stride, padding, dilation, p.channels, need_input,
                                need_depthwise_weight, need_depthwise_bias);
  }
  const auto& [grad_input, grad_depthwise_weight, grad_depthwise_bias] = inner;
  return {grad_input, grad_depthwise_weight, outer[1] ? to_dense(*outer[1], false) : none, grad_depthwise_bias,
          outer[2].value_or(none)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("depthwise_separable_conv2d", TORCH_BOX(&depthwise_separable_conv2d_cpu));
  m.impl("depthwise_separable_conv2d_backward", TORCH_BOX(&depthwise_separable_conv2d_backward_cpu));
}

}  // namespace segkernels
