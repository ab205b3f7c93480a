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

// Rows [first, first + rows) of the weights, packed, and where each tap of a rate is.
template <typename acc_t>
struct PackedSlab {
  std::vector<Scratch<acc_t>> packed;
  int64_t size;

  // Rows are output channels; `transposed`, for the gradient of the input, input channels.
  PackedSlab(const std::vector<Tensor>& weights, const MultiDilationParams& p, bool transposed, int64_t first,
             int64_t rows)
      : size(packed_tap_size<acc_t>(rows, transposed ? p.out_channels : p.in_channels)) {
    for (const Tensor& weight : weights) {
      const int64_t taps = weight.size(2) * weight.size(3);
      packed.emplace_back(taps * size);
      const bool channels_last = is_channels_last(weight);
      const int64_t in = channels_last ? 1 : taps, out = p.in_channels * taps;
      const TapSteps steps{transposed ? in : out, transposed ? out : in, channels_last ? p.in_channels : 1};
      dispatch_floating(weight.scalar_type(), "multi_dilation_conv2d", [&]<typename T>() {
        if constexpr (std::is_same_v<accumulate_t<T>, acc_t>) {
          pack_taps(static_cast<const T*>(weight.const_data_ptr()) + first * steps.row, steps, rows,
                    transposed ? p.out_channels : p.in_channels, taps, packed.back().get());
        }
      });
    }
  }
  const acc_t* tap(int64_t weight, int64_t t) const {
    return packed[weight].get() + t * size;
  }
};

std::vector<Tensor> dense_weights(const std::vector<Tensor>& weights) {
  std::vector<Tensor> dense;
  for (const Tensor& weight : weights) {
    dense.push_back(to_dense(weight, is_channels_last(weight)));
  }
  return dense;
}

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
    std::vector<std::vector<Tap>> shifts(p.rates.size());
    std::vector<std::vector<Pixel>> pixels;
    for (size_t r = 0; r < p.rates.size(); ++r) {
      for (int64_t t = 0; t < p.rates[r].taps(); ++t) {
        shifts[r].push_back(tap_of(p.rates[r], t, 1, 0));
      }
      pixels.push_back(pixels_by_taps(p.batch, p.height, p.width, shifts[r]));
    }
    const int64_t slab = row_slab<acc_t>(p.batch * p.height * p.width, p.in_channels);
    for (size_t w = 0; w < weights.size(); ++w) {
      const std::vector<Tensor> weight = dense_weights({weights[w]});
      for (int64_t first = 0; first < p.out_channels; first += slab) {
        const int64_t rows = std::min(slab, p.out_channels - first);
        const PackedSlab<acc_t> packed(weight, p, false, first, rows);
        for (size_t r = 0; r < p.rates.size(); ++r) {
          if (p.rates[r].weight != static_cast<int64_t>(w)) {
            continue;
          }
          std::vector<const acc_t*> operands;
          for (int64_t t = 0; t < p.rates[r].taps(); ++t) {
            operands.push_back(packed.tap(0, t));
          }
          shifted_products(source, p.in_channels, shifts[r], operands, pixels[r], rows,
                           bias ? add.data() + first : nullptr,
                           {output, channels_last, static_cast<int64_t>(r) * p.out_channels + first});
        }
      }
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
      std::vector<Tap> shifts;
      for (int64_t r = 0; r < rates; ++r) {
        for (int64_t t = 0; t < p.rates[r].taps(); ++t) {
          shifts.push_back(tap_of(p.rates[r], t, -1, r * p.out_channels));
        }
      }
      const std::vector<Pixel> pixels = pixels_by_taps(p.batch, p.height, p.width, shifts);
      const std::vector<Tensor> dense = dense_weights(weights);
      const int64_t slab = row_slab<acc_t>(p.batch * p.height * p.width, p.out_channels * rates);
      for (int64_t first = 0; first < p.in_channels; first += slab) {
        const int64_t rows = std::min(slab, p.in_channels - first);
        const PackedSlab<acc_t> packed(dense, p, true, first, rows);
        std::vector<const acc_t*> operands;
        for (const Rate& rate : p.rates) {
          for (int64_t t = 0; t < rate.taps(); ++t) {
            operands.push_back(packed.tap(rate.weight, t));
          }
        }
        shifted_products<acc_t>(upstream, p.out_channels, shifts, operands, pixels, rows, nullptr,
                                {grads[0], channels_last, first});
      }
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
