// Convolutions of several dilations over one map on the CPU, results side by side in one output; see
// shifted_products.h.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "../common/dispatch.h"
#include "../common/multi_dilation_conv2d.h"
#include "shifted_products.h"

namespace segkernels {
namespace {

// `sign` -1 for the gradient of the input.
Tap tap_of(const Rate& rate, int64_t t, int64_t sign, int64_t channel) {
  return {sign * rate.dilation * (t / rate.kernel_w - rate.kernel_h / 2),
          sign * rate.dilation * (t % rate.kernel_w - rate.kernel_w / 2), channel};
}

template <typename T>
Map<const T> map_of(const Tensor& tensor, bool channels_last) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.size(1), tensor.size(2), tensor.size(3),
          channels_last};
}

template <typename T>
Map<T> mutable_map_of(Tensor& tensor, bool channels_last) {
  return {static_cast<T*>(tensor.mutable_data_ptr()), tensor.size(1), tensor.size(2), tensor.size(3), channels_last};
}

Tensor multi_dilation_conv2d_cpu(const Tensor& input,                 // [N, C, H, W]
                                 const std::vector<Tensor>& weights,  // each [O, C, KH, KW]
                                 std::vector<int64_t> dilations) {
  const char* op = "multi_dilation_conv2d";
  const MultiDilationParams p = multi_dilation_params(op, input, weights, dilations);
  const bool channels_last = is_channels_last(input);
  const int64_t out_channels = p.out_channels * static_cast<int64_t>(p.rates.size());
  Tensor output = empty_nchw(p.batch, out_channels, p.height, p.width, input.scalar_type(), input,
                             channels_last);  // [N, R * O, H, W]
  if (output.numel() == 0) {
    return output;
  }
  if (p.in_channels == 0) {
    return torch::stable::zero_(output);
  }
  const Tensor x = to_dense(input, channels_last);
  dispatch_floating(input.scalar_type(), op, [&]<typename T>() {
    using acc_t = accumulate_t<T>;
    Scratch<acc_t> packed(0);
    for (size_t r = 0; r < p.rates.size(); ++r) {
      const Rate& rate = p.rates[r];
      const int64_t taps = rate.taps();
      if (r == 0 || weights.size() > 1) {
        const Tensor weight = torch::stable::contiguous(weights[r]);
        packed = Scratch<acc_t>(0);  // before the next one is allocated
        packed = pack_taps<acc_t>(static_cast<const T*>(weight.const_data_ptr()), p.out_channels, p.in_channels, taps,
                                  p.in_channels * taps, taps);
      }
      const int64_t size = Gemm<acc_t>::row_panels(p.out_channels) * Gemm<acc_t>::kRows * p.in_channels;
      std::vector<Tap> shifts;
      std::vector<const acc_t*> operands;
      for (int64_t t = 0; t < taps; ++t) {
        shifts.push_back(tap_of(rate, t, 1, 0));
        operands.push_back(packed.get() + t * size);
      }
      shifted_products(map_of<T>(x, channels_last), p.in_channels, shifts, operands,
                       pixels_by_taps(p.batch, p.height, p.width, shifts), p.out_channels,
                       mutable_map_of<T>(output, channels_last), static_cast<int64_t>(r) * p.out_channels);
    }
  });
  return output;
}

// Gradients of the input and of each weight; those that are not asked for come back empty.
std::vector<Tensor> multi_dilation_conv2d_backward_cpu(const Tensor& grad_output,           // [N, R * O, H, W]
                                                       const Tensor& input,                 // [N, C, H, W]
                                                       const std::vector<Tensor>& weights,  // each [O, C, KH, KW]
                                                       std::vector<int64_t> dilations, bool need_input,
                                                       bool need_weights) {
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
  dispatch_floating(input.scalar_type(), op, [&]<typename T>() {
    using acc_t = accumulate_t<T>;
    const auto upstream = map_of<T>(g, channels_last);
    if (need_input) {
      // One product over the taps of all rates.
      std::vector<Scratch<acc_t>> packed;
      for (const Tensor& weight : weights) {
        const Tensor w = torch::stable::contiguous(weight);
        const int64_t taps = w.size(2) * w.size(3);
        packed.push_back(pack_taps<acc_t>(static_cast<const T*>(w.const_data_ptr()), p.in_channels, p.out_channels,
                                          taps, taps, p.in_channels * taps));
      }
      const int64_t size = Gemm<acc_t>::row_panels(p.in_channels) * Gemm<acc_t>::kRows * p.out_channels;
      std::vector<Tap> shifts;
      std::vector<const acc_t*> operands;
      for (int64_t r = 0; r < rates; ++r) {
        for (int64_t t = 0; t < p.rates[r].taps(); ++t) {
          shifts.push_back(tap_of(p.rates[r], t, -1, r * p.out_channels));
          operands.push_back(packed[p.rates[r].weight].get() + t * size);
        }
      }
      shifted_products(upstream, p.out_channels, shifts, operands, pixels_by_taps(p.batch, p.height, p.width, shifts),
                       p.in_channels, mutable_map_of<T>(grads[0], channels_last), 0);
    }
    for (size_t i = 0; need_weights && i < weights.size(); ++i) {
      const int64_t taps = weights[i].size(2) * weights[i].size(3);
      const int64_t size = p.out_channels * p.in_channels;
      Scratch<acc_t> sums(taps * size);  // [tap][O][C], whose rows are written whole
      std::fill_n(sums.get(), taps * size, acc_t(0));
      for (int64_t r = 0; r < rates; ++r) {
        for (int64_t t = 0; p.rates[r].weight == static_cast<int64_t>(i) && t < taps; ++t) {
          add_shifted_outer_product(upstream, r * p.out_channels, p.out_channels, map_of<T>(x, channels_last), p.batch,
                                    tap_of(p.rates[r], t, 1, 0), sums.get() + t * size);
        }
      }
      T* to = static_cast<T*>(grads[i + 1].mutable_data_ptr());
      parallel_items(size, taps, [&](int64_t begin, int64_t end) {
        for (int64_t t = 0; t < taps; ++t) {
          store_values(sums.get() + t * size + begin, taps, end - begin, to + begin * taps + t);
        }
      });
    }
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("multi_dilation_conv2d", TORCH_BOX(&multi_dilation_conv2d_cpu));
  m.impl("multi_dilation_conv2d_backward", TORCH_BOX(&multi_dilation_conv2d_backward_cpu));
}

}  // namespace segkernels
