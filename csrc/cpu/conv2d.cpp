// Convolution on the CPU: depthwise convolution is this package's own, torch's kernel does the rest.
#include "../common/conv2d.h"

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "../common/vendor.h"
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_planes.h"
#include "conv2d_depthwise_weight.h"

namespace segkernels {
namespace {

VendorConvolution vendor_convolution(const Conv2dParams& p) {
  return {{p.stride_h, p.stride_w}, {p.pad_h, p.pad_w}, {p.dilation_h, p.dilation_w}, {0, 0}, false, p.groups};
}

// The measurement says: torch's own depthwise forward wins in channels_last while its taps are few and close together.
bool vendor_wins(const Conv2dParams& p, ScalarType dtype, bool channels_last) {
  return channels_last && dtype == ScalarType::Float && p.taps() > 1 && p.taps() <= 25 && p.dilation_h <= 2 &&
         p.dilation_w <= 2 && p.multiplier() == 1;
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// Calls f with the number of channels that stand side by side.
template <typename F>
void dispatch_layout(ScalarType dtype, bool channels_last, const F& f) {
  dispatch_floating(dtype, "conv2d", [&]<typename T>() {
    if (channels_last) {
      f.template operator()<T, kDepthwiseLanes>();
    } else {
      f.template operator()<T, 1>();
    }
  });
}

Tensor conv2d_cpu(const Tensor& input,                // [N, Cin, H, W]
                  const Tensor& weight,               // [Cout, Cin / groups, KH, KW]
                  const std::optional<Tensor>& bias,  // [Cout]
                  IntList stride, IntList padding, IntList dilation, int64_t groups) {
  const Conv2dParams p = conv2d_params("conv2d", input, weight, stride, padding, dilation, groups);
  const bool channels_last = is_channels_last(input);
  if (!p.depthwise() || vendor_wins(p, input.scalar_type(), channels_last)) {
    return vendor_convolution(p).forward(input, weight, bias);
  }
  Tensor output = empty_nchw(p.batch, p.out_channels, p.out_h, p.out_w, input.scalar_type(), input,
                             channels_last);  // [N, Cout, OH, OW]
  if (output.numel() == 0) {
    return output;
  }
  const Tensor x = to_dense(input, channels_last);
  const Tensor w = torch::stable::contiguous(weight);
  const Tensor b = bias ? torch::stable::contiguous(*bias) : Tensor();
  dispatch_layout(input.scalar_type(), channels_last, [&]<typename T, int kLanes>() {
    using acc_t = accumulate_t<T>;
    const auto kernels = pack_depthwise<kLanes, acc_t>(data<T>(w), p.groups, p.multiplier(), p.taps());
    const auto add =
        bias ? pack_depthwise<kLanes, acc_t>(data<T>(b), p.groups, p.multiplier(), 1) : std::vector<acc_t>();
    const acc_t* bias_data = bias ? add.data() : nullptr;
    T* to = static_cast<T*>(output.mutable_data_ptr());
    if (kLanes == 1 && DepthwisePlanes<T>::fits(p)) {
      DepthwisePlanes<T>{p}.run(data<T>(x), kernels.data(), bias_data, to);
    } else {
      DepthwiseConvolution<T, kLanes>(p, false).run(data<T>(x), kernels.data(), bias_data, to);
    }
  });
  return output;
}

// Gradients that are not asked for come back empty.
std::tuple<Tensor, Tensor, Tensor> conv2d_backward_cpu(const Tensor& grad_output,  // [N, Cout, OH, OW]
                                                       const Tensor& input,        // [N, Cin, H, W]
                                                       const Tensor& weight,       // [Cout, Cin / groups, KH, KW]
                                                       IntList stride, IntList padding, IntList dilation,
                                                       int64_t groups, bool need_input, bool need_weight,
                                                       bool need_bias) {
  const Conv2dParams p = conv2d_params("conv2d_backward", input, weight, stride, padding, dilation, groups);
  const Tensor none = torch::stable::new_empty(input, {0});
  if (!p.depthwise() || grad_output.numel() == 0 || input.numel() == 0) {
    const auto grads = vendor_convolution(p).backward(grad_output, input, weight, {need_input, need_weight, need_bias});
    return {grads[0].value_or(none), grads[1].value_or(none), grads[2].value_or(none)};
  }
  const bool channels_last = is_channels_last(input);
  const Tensor g = to_dense(grad_output, channels_last);
  const Tensor w = torch::stable::contiguous(weight);
  const Tensor x = to_dense(input, channels_last);
  const ScalarType dtype = input.scalar_type();
  Tensor grad_input =
      need_input ? empty_nchw(p.batch, p.in_channels, p.in_h, p.in_w, dtype, input, channels_last) : none;
  Tensor grad_weight = need_weight ? empty_nchw(p.out_channels, 1, p.kernel_h, p.kernel_w, dtype, weight, false) : none;
  Tensor grad_bias = need_bias ? torch::stable::new_empty(input, {p.out_channels}) : none;
  dispatch_layout(dtype, channels_last, [&]<typename T, int kLanes>() {
    using acc_t = accumulate_t<T>;
    if (need_input) {
      auto kernels = pack_depthwise<kLanes, acc_t>(data<T>(w), p.groups, p.multiplier(), p.taps());
      T* to = static_cast<T*>(grad_input.mutable_data_ptr());
      const Conv2dParams back = DepthwisePlanes<T>::transposed(p);
      if (kLanes == 1 && p.multiplier() == 1 && DepthwisePlanes<T>::fits(back)) {
        for (int64_t group = 0; group < p.groups; ++group) {
          std::reverse(kernels.begin() + group * p.taps(), kernels.begin() + (group + 1) * p.taps());
        }
        DepthwisePlanes<T>{back}.run(data<T>(g), kernels.data(), nullptr, to);
      } else {
        DepthwiseConvolution<T, kLanes>(p, true).run(data<T>(g), kernels.data(), nullptr, to);
      }
    }
    if (need_weight || need_bias) {
      DepthwiseWeightGradient<T, kLanes>(p).run(data<T>(x), data<T>(g),
                                                need_weight ? static_cast<T*>(grad_weight.mutable_data_ptr()) : nullptr,
                                                need_bias ? static_cast<T*>(grad_bias.mutable_data_ptr()) : nullptr);
    }
  });
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d_cpu));
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward_cpu));
}

}  // namespace segkernels
