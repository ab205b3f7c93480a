// Convolution on the CPU: depthwise convolution is this package's own, of dense convolution the parts that win
// (conv2d_products.h); torch's kernel does the rest.
#include "conv2d.h"

#include <torch/csrc/stable/library.h>

#include "../common/dispatch.h"
#include "../common/vendor.h"
#include "conv2d_depthwise.h"
#include "conv2d_depthwise_pixels.h"
#include "conv2d_depthwise_planes.h"
#include "conv2d_depthwise_weight.h"
#include "conv2d_products.h"
#include "multi_dilation_conv2d.h"

namespace segkernels {
namespace {

VendorConvolution vendor_convolution(const Conv2dParams& p) {
  return {{p.stride_h, p.stride_w}, {p.pad_h, p.pad_w}, {p.dilation_h, p.dilation_w}, {0, 0}, false, p.groups};
}

// The measurement says: torch's own depthwise forward wins in channels_last for 5x5 and its like. Only where windows
// are as usual: where one lies in the padding whole, or is larger than the map, torch 2.13's ends the process.
bool vendor_wins(const Conv2dParams& p, ScalarType dtype, bool channels_last) {
  const int64_t reach_h = p.dilation_h * (p.kernel_h - 1), reach_w = p.dilation_w * (p.kernel_w - 1);
  return channels_last && dtype == ScalarType::Float && p.taps() > 9 && p.taps() <= 25 && p.dilation_h <= 2 &&
         p.dilation_w <= 2 && p.multiplier() == 1 && 2 * p.pad_h <= reach_h && 2 * p.pad_w <= reach_w &&
         p.in_h > reach_h && p.in_w > reach_w;
}

// [C, KH, KW] as [KH, KW, C]; `reversed` turns the kernel around.
template <typename acc_t>
std::vector<acc_t> taps_first(const std::vector<acc_t>& weight, int64_t channels, int64_t taps, bool reversed) {
  std::vector<acc_t> to(channels * taps);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      to[(reversed ? taps - 1 - t : t) * channels + c] = weight[c * taps + t];
    }
  }
  return to;
}

// channels_last in float32 needs no rows of its own.
template <typename acc_t, int kLanes>
constexpr bool kMayRunPixels = kLanes > 1 && std::is_same_v<acc_t, float>;

// float64 is a check's dtype: padded rows do for it.
template <typename acc_t, int kLanes>
constexpr bool kMayRunPlanes = kLanes == 1 && std::is_same_v<acc_t, float>;

// `b` is empty without a bias.
template <typename acc_t, int kLanes>
void depthwise_forward(const Conv2dParams& p, const DepthwiseSource<acc_t>& x, const std::vector<acc_t>& w,
                       const std::vector<acc_t>& b, const DepthwiseTarget<acc_t>& to) {
  if constexpr (kMayRunPixels<acc_t, kLanes>) {
    if (x.size == sizeof(float) && DepthwisePixels<acc_t>::fits(p)) {
      DepthwisePixels<acc_t>{p}.run(static_cast<const acc_t*>(x.data), taps_first(w, p.groups, p.taps(), false).data(),
                                    b.empty() ? nullptr : b.data(), static_cast<acc_t*>(to.data));
      return;
    }
  }
  const auto kernels = pack_depthwise<kLanes, acc_t>(w.data(), p.groups, p.multiplier(), p.taps());
  const auto add = b.empty() ? b : pack_depthwise<kLanes, acc_t>(b.data(), p.groups, p.multiplier(), 1);
  const acc_t* bias = b.empty() ? nullptr : add.data();
  if constexpr (kMayRunPlanes<acc_t, kLanes>) {
    if (DepthwisePlanes<acc_t>::fits(p)) {
      DepthwisePlanes<acc_t>{p}.run(x, kernels.data(), bias, to);
      return;
    }
  }
  DepthwiseConvolution<acc_t, kLanes>(p, false).run(x, kernels.data(), bias, to);
}

// The input's gradient: of stride 1 it is a convolution with the weights read backwards.
template <typename acc_t, int kLanes>
void depthwise_input_gradient(const Conv2dParams& p, const DepthwiseSource<acc_t>& g, std::vector<acc_t> w,
                              const DepthwiseTarget<acc_t>& to) {
  const Conv2dParams back = transposed(p);
  if constexpr (kMayRunPixels<acc_t, kLanes>) {
    if (g.size == sizeof(float) && p.stride_h == 1 && p.stride_w == 1 && DepthwisePixels<acc_t>::fits(back)) {
      DepthwisePixels<acc_t>{back}.run(static_cast<const acc_t*>(g.data),
                                       taps_first(w, p.groups, p.taps(), true).data(), nullptr,
                                       static_cast<acc_t*>(to.data));
      return;
    }
  }
  if constexpr (kMayRunPlanes<acc_t, kLanes>) {
    if (p.multiplier() == 1 && DepthwisePlanes<acc_t>::fits(back)) {
      for (int64_t group = 0; group < p.groups; ++group) {
        std::reverse(w.begin() + group * p.taps(), w.begin() + (group + 1) * p.taps());
      }
      DepthwisePlanes<acc_t>{back}.run(g, w.data(), nullptr, to);
      return;
    }
  }
  const auto kernels = pack_depthwise<kLanes, acc_t>(w.data(), p.groups, p.multiplier(), p.taps());
  DepthwiseConvolution<acc_t, kLanes>(p, true).run(g, kernels.data(), nullptr, to);
}

// Either of the two gradients may be null.
template <typename acc_t, int kLanes>
void depthwise_weight_gradient(const Conv2dParams& p, const DepthwiseSource<acc_t>& x, const DepthwiseSource<acc_t>& g,
                               acc_t* grad_weight, acc_t* grad_bias) {
  if constexpr (kMayRunPixels<acc_t, kLanes>) {
    if (x.size == sizeof(float) && DepthwisePixels<acc_t>::fits(p)) {
      DepthwisePixels<acc_t>{p}.run_weight(static_cast<const acc_t*>(x.data), static_cast<const acc_t*>(g.data),
                                           grad_weight, grad_bias);
      return;
    }
  }
  DepthwiseWeightGradient<acc_t, kLanes>(p).run(x, g, grad_weight, grad_bias);
}

// A parameter's values in the type of the sums.
template <typename acc_t>
std::vector<acc_t> values_of(const Tensor& tensor) {
  const Tensor dense = torch::stable::contiguous(tensor);
  std::vector<acc_t> values(dense.numel());
  dispatch_floating(dense.scalar_type(), "conv2d", [&]<typename T>() {
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = to_compute<acc_t>(static_cast<const T*>(dense.const_data_ptr())[i]);
    }
  });
  return values;
}

template <typename acc_t>
void set_values(const std::vector<acc_t>& values, Tensor& tensor) {
  dispatch_floating(tensor.scalar_type(), "conv2d", [&]<typename T>() {
    for (size_t i = 0; i < values.size(); ++i) {
      store_value(static_cast<T*>(tensor.mutable_data_ptr())[i], values[i]);
    }
  });
}

template <typename acc_t, int kLanes>
DepthwiseSource<acc_t> source_of(const Tensor& tensor) {
  DepthwiseSource<acc_t> source{};
  dispatch_floating(tensor.scalar_type(), "conv2d", [&]<typename T>() {
    if constexpr (std::is_same_v<accumulate_t<T>, acc_t>) {
      source = depthwise_source<kLanes>(static_cast<const T*>(tensor.const_data_ptr()));
    }
  });
  return source;
}

template <typename acc_t, int kLanes>
DepthwiseTarget<acc_t> target_of(Tensor& tensor) {
  DepthwiseTarget<acc_t> target{};
  dispatch_floating(tensor.scalar_type(), "conv2d", [&]<typename T>() {
    if constexpr (std::is_same_v<accumulate_t<T>, acc_t>) {
      target = depthwise_target<kLanes>(static_cast<T*>(tensor.mutable_data_ptr()));
    }
  });
  return target;
}

// Whether channels_last is computed as it stands; float64 is a check's dtype, planes do for it.
bool runs_pixels(ScalarType dtype, bool channels_last) {
  return channels_last && dtype != ScalarType::Double;
}

// Calls f with the type of the sums and the number of channels that stand side by side.
template <typename F>
void dispatch_layout(ScalarType dtype, bool pixels, const F& f) {
  if (dtype == ScalarType::Double) {
    f.template operator()<double, 1>();
  } else if (pixels) {
    f.template operator()<float, kDepthwiseLanes>();
  } else {
    f.template operator()<float, 1>();
  }
}

}  // namespace

Tensor conv2d_cpu(const Tensor& input,                // [N, Cin, H, W]
                  const Tensor& weight,               // [Cout, Cin / groups, KH, KW]
                  const std::optional<Tensor>& bias,  // [Cout]
                  IntList stride, IntList padding, IntList dilation, int64_t groups) {
  const Conv2dParams p = conv2d_params("conv2d", input, weight, stride, padding, dilation, groups);
  const bool channels_last = is_channels_last(input);
  if (products_win(p, input.scalar_type(), channels_last).forward) {
    return multi_dilation_forward(input, {weight}, {p.dilation_h}, bias);
  }
  if (!p.depthwise() || vendor_wins(p, input.scalar_type(), channels_last)) {
    return vendor_convolution(p).forward(input, weight, bias);
  }
  const bool pixels = runs_pixels(input.scalar_type(), channels_last);
  Tensor output = empty_nchw(p.batch, p.out_channels, p.out_h, p.out_w, input.scalar_type(), input,
                             pixels);  // [N, Cout, OH, OW]
  if (output.numel() == 0) {
    return to_dense(output, channels_last);
  }
  const Tensor x = to_dense(input, pixels);
  dispatch_layout(input.scalar_type(), pixels, [&]<typename acc_t, int kLanes>() {
    depthwise_forward<acc_t, kLanes>(p, source_of<acc_t, kLanes>(x), values_of<acc_t>(weight),
                                     bias ? values_of<acc_t>(*bias) : std::vector<acc_t>(),
                                     target_of<acc_t, kLanes>(output));
  });
  return to_dense(output, channels_last);
}

namespace {

std::tuple<Tensor, Tensor, Tensor> dense_backward(const Conv2dParams& p, const Tensor& grad_output, const Tensor& input,
                                                  const Tensor& weight, bool channels_last, std::array<bool, 3> need) {
  const Tensor none = torch::stable::new_empty(input, {0});
  std::array<Tensor, 3> grads{none, none, none};
  const ProductsWin win = products_win(p, input.scalar_type(), channels_last);
  const std::array<bool, 2> ours{need[0] && win.grad_input, need[1] && win.grad_weight};
  if ((ours[0] || ours[1]) && grad_output.numel() > 0 && input.numel() > 0) {
    const auto found = multi_dilation_backward(grad_output, input, {weight}, {p.dilation_h}, ours[0], ours[1]);
    for (int i = 0; i < 2; ++i) {
      grads[i] = found[i];
      need[i] = need[i] && !ours[i];
    }
  }
  if (need[2] && !need[1]) {
    // Torch's convolution computes the gradient of the weights with that of the bias, at a hundred times the cost.
    const int64_t all_but_channels[] = {0, 2, 3};
    grads[2] = torch::stable::sum(grad_output, torch::headeronly::IntHeaderOnlyArrayRef(all_but_channels, 3));
    need[2] = false;
  }
  if (need[0] || need[1] || need[2]) {
    const auto rest = vendor_convolution(p).backward(grad_output, input, weight, need);
    for (int i = 0; i < 3; ++i) {
      grads[i] = need[i] ? *rest[i] : grads[i];
    }
  }
  return {grads[0], grads[1], grads[2]};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> conv2d_backward_cpu(const Tensor& grad_output,  // [N, Cout, OH, OW]
                                                       const Tensor& input,        // [N, Cin, H, W]
                                                       const Tensor& weight,       // [Cout, Cin / groups, KH, KW]
                                                       IntList stride, IntList padding, IntList dilation,
                                                       int64_t groups, bool need_input, bool need_weight,
                                                       bool need_bias) {
  const Conv2dParams p = conv2d_params("conv2d_backward", input, weight, stride, padding, dilation, groups);
  const bool channels_last = is_channels_last(input);
  if (!p.depthwise() || grad_output.numel() == 0 || input.numel() == 0) {
    return dense_backward(p, grad_output, input, weight, channels_last, {need_input, need_weight, need_bias});
  }
  const Tensor none = torch::stable::new_empty(input, {0});
  const ScalarType dtype = input.scalar_type();
  const bool pixels = runs_pixels(dtype, channels_last);
  const Tensor g = to_dense(grad_output, pixels);
  const Tensor x = to_dense(input, pixels);
  Tensor grad_input = need_input ? empty_nchw(p.batch, p.in_channels, p.in_h, p.in_w, dtype, input, pixels) : none;
  Tensor grad_weight = need_weight ? empty_nchw(p.out_channels, 1, p.kernel_h, p.kernel_w, dtype, weight, false) : none;
  Tensor grad_bias = need_bias ? torch::stable::new_empty(input, {p.out_channels}) : none;
  dispatch_layout(dtype, pixels, [&]<typename acc_t, int kLanes>() {
    const auto upstream = source_of<acc_t, kLanes>(g);
    if (need_input) {
      depthwise_input_gradient<acc_t, kLanes>(p, upstream, values_of<acc_t>(weight),
                                              target_of<acc_t, kLanes>(grad_input));
    }
    if (need_weight || need_bias) {
      std::vector<acc_t> weights(grad_weight.numel()), biases(grad_bias.numel());
      depthwise_weight_gradient<acc_t, kLanes>(p, source_of<acc_t, kLanes>(x), upstream,
                                               need_weight ? weights.data() : nullptr,
                                               need_bias ? biases.data() : nullptr);
      set_values(weights, grad_weight);
      set_values(biases, grad_bias);
    }
  });
  return {need_input ? to_dense(grad_input, channels_last) : none, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&conv2d_cpu));
  m.impl("conv2d_backward", TORCH_BOX(&conv2d_backward_cpu));
}

}  // namespace segkernels
