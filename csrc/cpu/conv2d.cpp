// Convolution on the CPU: depthwise convolution is this package's own, torch's kernel does the rest.
#include "../common/conv2d.h"

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "../common/vendor.h"
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_pixels.h"
#include "conv2d_depthwise_planes.h"
#include "conv2d_depthwise_weight.h"
#include "multi_dilation_conv2d.h"

namespace segkernels {
namespace {

VendorConvolution vendor_convolution(const Conv2dParams& p) {
  return {{p.stride_h, p.stride_w}, {p.pad_h, p.pad_w}, {p.dilation_h, p.dilation_w}, {0, 0}, false, p.groups};
}

// A dense convolution that keeps the size, and is one rate of multi_dilation_conv2d.
bool atrous(const Conv2dParams& p) {
  const auto keeps = [&](int64_t kernel, int64_t pad) { return kernel % 2 == 1 && pad == p.dilation_h * (kernel / 2); };
  return p.groups == 1 && p.stride_h == 1 && p.stride_w == 1 && p.dilation_h == p.dilation_w &&
         keeps(p.kernel_h, p.pad_h) && keeps(p.kernel_w, p.pad_w);
}

// The share of the products whose tap lies inside of the map.
double share_inside(const Conv2dParams& p) {
  const auto axis = [&](int64_t size, int64_t kernel) {
    int64_t inside = 0;
    for (int64_t tap = 0; tap < kernel; ++tap) {
      inside += std::max<int64_t>(0, size - std::abs(tap - kernel / 2) * p.dilation_h);
    }
    return static_cast<double>(inside) / static_cast<double>(kernel * size);
  };
  return axis(p.in_h, p.kernel_h) * axis(p.in_w, p.kernel_w);
}

// The measurement over 32 to 2048 channels, maps of 17 to 65 and dilations of 2 to 36 says: torch's NCHW kernel
// multiplies the padding too and takes 1.3 to 3 times as long, its channels_last forward is as fast as ours, and its
// gradients take 1.1 to 1.7 times as long in both.
bool products_win(const Conv2dParams& p, ScalarType dtype) {
  return dtype == ScalarType::Float && atrous(p) && p.in_channels >= 32 && share_inside(p) < 0.9;
}

// The measurement says: torch's own depthwise forward wins in channels_last for 5x5 and its like. Only where windows
// are as usual: where one lies in the padding whole, or is larger than the map, torch 2.13's ends the process.
bool vendor_wins(const Conv2dParams& p, ScalarType dtype, bool channels_last) {
  const int64_t reach_h = p.dilation_h * (p.kernel_h - 1), reach_w = p.dilation_w * (p.kernel_w - 1);
  return channels_last && dtype == ScalarType::Float && p.taps() > 9 && p.taps() <= 25 && p.dilation_h <= 2 &&
         p.dilation_w <= 2 && p.multiplier() == 1 && 2 * p.pad_h <= reach_h && 2 * p.pad_w <= reach_w &&
         p.in_h > reach_h && p.in_w > reach_w;
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// [C, KH, KW] as [KH, KW, C]; `reversed` turns the kernel around.
template <typename T>
std::vector<T> taps_first(const T* weight, int64_t channels, int64_t taps, bool reversed) {
  std::vector<T> to(channels * taps);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      to[(reversed ? taps - 1 - t : t) * channels + c] = weight[c * taps + t];
    }
  }
  return to;
}

// channels_last in float32 needs no rows of its own.
template <typename T, int kLanes>
constexpr bool kMayRunPixels = kLanes > 1 && std::is_same_v<T, float>;

// float64 is a check's dtype: padded rows do for it.
template <typename T, int kLanes>
constexpr bool kMayRunPlanes = kLanes == 1 && !std::is_same_v<T, double>;

// `b` may be null.
template <typename T, int kLanes>
void depthwise_forward(const Conv2dParams& p, const T* x, const T* w, const T* b, T* to) {
  using acc_t = accumulate_t<T>;
  if constexpr (kMayRunPixels<T, kLanes>) {
    if (DepthwisePixels<T>::fits(p)) {
      DepthwisePixels<T>{p}.run(x, taps_first(w, p.groups, p.taps(), false).data(), b, to);
      return;
    }
  }
  const auto kernels = pack_depthwise<kLanes, acc_t>(w, p.groups, p.multiplier(), p.taps());
  const auto add = b ? pack_depthwise<kLanes, acc_t>(b, p.groups, p.multiplier(), 1) : std::vector<acc_t>();
  const acc_t* bias = b ? add.data() : nullptr;
  if constexpr (kMayRunPlanes<T, kLanes>) {
    if (DepthwisePlanes<T>::fits(p)) {
      DepthwisePlanes<T>{p}.run(x, kernels.data(), bias, to);
      return;
    }
  }
  DepthwiseConvolution<acc_t, kLanes>(p, false).run(depthwise_source<kLanes>(x), kernels.data(), bias,
                                                    depthwise_target<kLanes>(to));
}

// The input's gradient: of stride 1 it is a convolution with the weights read backwards.
template <typename T, int kLanes>
void depthwise_input_gradient(const Conv2dParams& p, const T* g, const T* w, T* to) {
  using acc_t = accumulate_t<T>;
  const Conv2dParams back = transposed(p);
  if constexpr (kMayRunPixels<T, kLanes>) {
    if (p.stride_h == 1 && p.stride_w == 1 && DepthwisePixels<T>::fits(back)) {
      DepthwisePixels<T>{back}.run(g, taps_first(w, p.groups, p.taps(), true).data(), nullptr, to);
      return;
    }
  }
  auto kernels = pack_depthwise<kLanes, acc_t>(w, p.groups, p.multiplier(), p.taps());
  if constexpr (kMayRunPlanes<T, kLanes>) {
    if (p.multiplier() == 1 && DepthwisePlanes<T>::fits(back)) {
      for (int64_t group = 0; group < p.groups; ++group) {
        std::reverse(kernels.begin() + group * p.taps(), kernels.begin() + (group + 1) * p.taps());
      }
      DepthwisePlanes<T>{back}.run(g, kernels.data(), nullptr, to);
      return;
    }
  }
  DepthwiseConvolution<acc_t, kLanes>(p, true).run(depthwise_source<kLanes>(g), kernels.data(), nullptr,
                                                   depthwise_target<kLanes>(to));
}

// Either of the two gradients may be null.
template <typename T, int kLanes>
void depthwise_weight_gradient(const Conv2dParams& p, const T* x, const T* g, T* grad_weight, T* grad_bias) {
  if constexpr (kMayRunPixels<T, kLanes>) {
    if (DepthwisePixels<T>::fits(p)) {
      DepthwisePixels<T>{p}.run_weight(x, g, grad_weight, grad_bias);
      return;
    }
  }
  using acc_t = accumulate_t<T>;
  std::vector<acc_t> weights(grad_weight ? p.out_channels * p.taps() : 0), biases(grad_bias ? p.out_channels : 0);
  DepthwiseWeightGradient<acc_t, kLanes>(p).run(depthwise_source<kLanes>(x), depthwise_source<kLanes>(g),
                                                grad_weight ? weights.data() : nullptr,
                                                grad_bias ? biases.data() : nullptr);
  for (size_t i = 0; i < weights.size(); ++i) {
    store_value(grad_weight[i], weights[i]);
  }
  for (size_t i = 0; i < biases.size(); ++i) {
    store_value(grad_bias[i], biases[i]);
  }
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
  if (!channels_last && products_win(p, input.scalar_type())) {
    return multi_dilation_forward(input, {weight}, {p.dilation_h}, bias);
  }
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
    depthwise_forward<T, kLanes>(p, data<T>(x), data<T>(w), bias ? data<T>(b) : nullptr,
                                 static_cast<T*>(output.mutable_data_ptr()));
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
  if (products_win(p, input.scalar_type()) && input.numel() > 0) {
    const std::vector<Tensor> grads =
        multi_dilation_backward(grad_output, input, {weight}, {p.dilation_h}, need_input, need_weight);
    const auto rest = vendor_convolution(p).backward(grad_output, input, weight, {false, false, need_bias});
    return {grads[0], grads[1], rest[2].value_or(none)};
  }
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
    if (need_input) {
      depthwise_input_gradient<T, kLanes>(p, data<T>(g), data<T>(w), static_cast<T*>(grad_input.mutable_data_ptr()));
    }
    if (need_weight || need_bias) {
      depthwise_weight_gradient<T, kLanes>(p, data<T>(x), data<T>(g),
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
