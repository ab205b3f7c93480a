// Convolutions of several dilations over one map on the CPU, results side by side in one output; see
// shifted_products.h.
#include "multi_dilation_conv2d.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/dispatch.h"
#include "shifted_products.h"

namespace segkernels {
namespace {

// `sign` -1 for the gradient of the input.
Tap tap_of(const Rate& rate, int64_t t, int64_t sign, int64_t channel) {
  return {sign * rate.dilation * (t / rate.kernel_w - rate.kernel_h / 2),
          sign * rate.dilation * (t % rate.kernel_w - rate.kernel_w / 2), channel};
}

// The packed weights of each rate, those of a shared weight once, and where tap t of rate r is.
template <typename acc_t>
struct PackedRates {
  std::vector<Scratch<acc_t>> packed;
  int64_t size;

  // Forward: [O, C] products; `transposed` for the gradient of the input.
  PackedRates(const std::vector<Tensor>& weights, const MultiDilationParams& p, bool transposed)
      : size(packed_tap_size<acc_t>(transposed ? p.in_channels : p.out_channels,
                                    transposed ? p.out_channels : p.in_channels)) {
    for (const Tensor& weight : weights) {
      packed.push_back(pack(weight, p, transposed));
    }
  }
  const acc_t* tap(const Rate& rate, int64_t t) const {
    return packed[rate.weight].get() + t * size;
  }

  static Scratch<acc_t> pack(const Tensor& weight, const MultiDilationParams& p, bool transposed) {
    const Tensor dense = torch::stable::contiguous(weight);
    const int64_t taps = weight.size(2) * weight.size(3), row = p.in_channels * taps;
    Scratch<acc_t> result(0);
    dispatch_floating(weight.scalar_type(), "multi_dilation_conv2d", [&]<typename T>() {
      if constexpr (std::is_same_v<accumulate_t<T>, acc_t>) {
        const T* data = static_cast<const T*>(dense.const_data_ptr());
        result = transposed ? pack_taps<acc_t>(data, p.in_channels, p.out_channels, taps, taps, row)
                            : pack_taps<acc_t>(data, p.out_channels, p.in_channels, taps, row, taps);
      }
    });
    return result;
  }
};

}  // namespace

Tensor multi_dilation_forward(const Tensor& input, const std::vector<Tensor>& weights,
                              const std::vector<int64_t>& dilations, const std::optional<Tensor>& bias) {
  const char* op = "multi_dilation_conv2d";
  const MultiDilationParams p = multi_dilation_params(op, input, weights, dilations);
  const bool channels_last = is_channels_last(input);
  const int64_t out_channels = p.out_channels * static_cast<int64_t>(p.rates.size());
  Tensor output = empty_nchw(p.batch, out_channels, p.height, p.width, input.scalar_type(), input,
                             channels_last);  // [N, R * O, H, W]
  if (output.numel() == 0) {
    return output;
  }
  const Tensor x = to_dense(input, channels_last);
  dispatch_compute(input.scalar_type(), [&]<typename acc_t>() {
    const PixelRows<acc_t> source(x, channels_last);
    std::vector<acc_t> add(bias ? p.out_channels : 0);
    if (bias) {
      const Tensor dense = torch::stable::contiguous(*bias);
      dispatch_floating(input.scalar_type(), op, [&]<typename T>() {
        load_values(static_cast<const T*>(dense.const_data_ptr()), 1, p.out_channels, add.data());
      });
    }
    std::optional<PackedRates<acc_t>> packed;
    for (size_t r = 0; r < p.rates.size(); ++r) {
      Rate rate = p.rates[r];
      if (r == 0 || weights.size() > 1) {
        packed.reset();  // one rate's weights at a time
        packed.emplace(std::vector<Tensor>{weights[r]}, p, false);
      }
      rate.weight = 0;
      std::vector<Tap> shifts;
      std::vector<const acc_t*> operands;
      for (int64_t t = 0; t < rate.taps(); ++t) {
        shifts.push_back(tap_of(rate, t, 1, 0));
        operands.push_back(packed->tap(rate, t));
      }
      shifted_products(source, p.in_channels, shifts, operands, pixels_by_taps(p.batch, p.height, p.width, shifts),
                       p.out_channels, bias ? add.data() : nullptr,
                       {output, channels_last, static_cast<int64_t>(r) * p.out_channels});
    }
  });
  return output;
}

// Gradients of the input and of each weight; those that are not asked for come back empty.
std::vector<Tensor> multi_dilation_backward(const Tensor& grad_output,           // [N, R * O, H, W]
                                            const Tensor& input,                 // [N, C, H, W]
                                            const std::vector<Tensor>& weights,  // each [O, C, KH, KW]
                                            const std::vector<int64_t>& dilations, bool need_input, bool need_weights) {
  const char* op = "multi_dilation_conv2d_backward";
  const MultiDilationParams p = multi_dilation_params(op, input, weights, dilations);
  const bool channels_last = is_channels_last(input);
  const int64_t rates = static_cast<int64_t>(p.rates.size());
  check_multi_dilation_gradient(op, grad_output, input, p);
  const bool nothing = grad_output.numel() == 0 || input.numel() == 0;
  const Tensor g = to_dense(grad_output, channels_last);
  const Tensor x = to_dense(input, channels_last);
  std::vector<Tensor> grads;
  for (size_t i = 0; i <= weights.size(); ++i) {
    if (!(i == 0 ? need_input : need_weights)) {
      grads.push_back(torch::stable::new_empty(input, {0}));
    } else if (i == 0) {
      grads.push_back(empty_nchw(p.batch, p.in_channels, p.height, p.width, input.scalar_type(), input, channels_last));
    } else {
      const Tensor& w = weights[i - 1];
      grads.push_back(empty_nchw(w.size(0), w.size(1), w.size(2), w.size(3), w.scalar_type(), w, false));
    }
    if (nothing && grads.back().numel() > 0) {
      grads.back() = torch::stable::zero_(grads.back());
    }
  }
  if (nothing) {
    return grads;
  }
  dispatch_compute(input.scalar_type(), [&]<typename acc_t>() {
    const PixelRows<acc_t> upstream(g, channels_last);
    if (need_input) {
      // One product over the taps of all rates.
      const PackedRates<acc_t> packed(weights, p, true);
      std::vector<Tap> shifts;
      std::vector<const acc_t*> operands;
      for (int64_t r = 0; r < rates; ++r) {
        for (int64_t t = 0; t < p.rates[r].taps(); ++t) {
          shifts.push_back(tap_of(p.rates[r], t, -1, r * p.out_channels));
          operands.push_back(packed.tap(p.rates[r], t));
        }
      }
      shifted_products<acc_t>(upstream, p.out_channels, shifts, operands,
                              pixels_by_taps(p.batch, p.height, p.width, shifts), p.in_channels, nullptr,
                              {grads[0], channels_last, 0});
    }
    if (!need_weights) {
      return;
    }
    const PixelRows<acc_t> source(x, channels_last);
    for (size_t i = 0; i < weights.size(); ++i) {
      const int64_t taps = weights[i].size(2) * weights[i].size(3);
      const int64_t size = p.out_channels * p.in_channels;
      Scratch<acc_t> sums(taps * size);  // [tap][O][C], whose rows are written whole
      std::fill_n(sums.get(), taps * size, acc_t(0));
      for (int64_t r = 0; r < rates; ++r) {
        for (int64_t t = 0; p.rates[r].weight == static_cast<int64_t>(i) && t < taps; ++t) {
          add_shifted_outer_product(upstream, r * p.out_channels, p.out_channels, source, tap_of(p.rates[r], t, 1, 0),
                                    sums.get() + t * size);
        }
      }
      dispatch_floating(input.scalar_type(), op, [&]<typename T>() {
        T* to = static_cast<T*>(grads[i + 1].mutable_data_ptr());
        parallel_items(size, taps, [&](int64_t begin, int64_t end) {
          for (int64_t t = 0; t < taps; ++t) {
            store_values(sums.get() + t * size + begin, taps, end - begin, to + begin * taps + t);
          }
        });
      });
    }
  });
  return grads;
}

namespace {

Tensor multi_dilation_conv2d_cpu(const Tensor& input,                 // [N, C, H, W]
                                 const std::vector<Tensor>& weights,  // each [O, C, KH, KW]
                                 std::vector<int64_t> dilations) {
  return multi_dilation_forward(input, weights, dilations, std::nullopt);
}

std::vector<Tensor> multi_dilation_conv2d_backward_cpu(const Tensor& grad_output, const Tensor& input,
                                                       const std::vector<Tensor>& weights,
                                                       std::vector<int64_t> dilations, bool need_input,
                                                       bool need_weights) {
  return multi_dilation_backward(grad_output, input, weights, dilations, need_input, need_weights);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("multi_dilation_conv2d", TORCH_BOX(&multi_dilation_conv2d_cpu));
  m.impl("multi_dilation_conv2d_backward", TORCH_BOX(&multi_dilation_conv2d_backward_cpu));
}

}  // namespace segkernels
