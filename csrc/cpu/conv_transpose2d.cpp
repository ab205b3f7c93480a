// Transposed convolution on the CPU: which path runs. The table is `choose_path`; each path is a header of its own.
#include "conv_transpose2d.h"

#include <torch/csrc/stable/library.h>

#include "conv_transpose2d_cells.h"
#include "conv_transpose2d_depthwise.h"
#include "conv_transpose2d_phases.h"
#include "conv_transpose2d_tiled.h"

namespace segkernels {
namespace {

enum class Path { kCells, kTiled, kPhases, kDepthwise, kVendor };

// The rule that decides, from benchmarks/results: this package's paths in NCHW, where torch's run at 40-80% of the
// machine's matrix peak, and its depthwise kernel at a fifth of the memory's speed; torch's in channels_last.
// float64 is a check's dtype, not worth a second copy of every path.
Path choose_path(const ConvTranspose2dParams& p, ScalarType dtype, bool channels_last, bool forward) {
  if (dtype == ScalarType::Double) {
    return !channels_last && p.depthwise() ? Path::kDepthwise : Path::kVendor;
  }
  if (p.kernel_is_stride() && p.taps() > 1 && !forward) {
    return Path::kTiled;
  }
  if (!channels_last && phases_apply(p)) {
    return Path::kPhases;
  }
  if (!channels_last && cells_apply(p) && forward) {
    return Path::kCells;
  }
  if (!channels_last && p.depthwise()) {
    return Path::kDepthwise;
  }
  return Path::kVendor;
}

// Half types are computed in float32: converted as a whole where that costs little beside the products.
Tensor in_compute_type(const Tensor& tensor) {
  const ScalarType dtype = compute_type(tensor.scalar_type());
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace

Tensor conv_transpose2d_cpu(const Tensor& input,                // [N, Cin, H, W]
                            const Tensor& weight,               // [Cin, Cout / groups, KH, KW]
                            const std::optional<Tensor>& bias,  // [Cout]
                            IntList stride, IntList padding, IntList output_padding, int64_t groups, IntList dilation) {
  const ConvTranspose2dParams p =
      conv_transpose2d_params("conv_transpose2d", input, weight, stride, padding, output_padding, groups, dilation);
  const bool channels_last = is_channels_last(input);
  const Path path = choose_path(p, input.scalar_type(), channels_last, true);
  if (path == Path::kVendor) {
    return vendor_convolution(p).forward(input, weight, bias);
  }
  const ScalarType dtype = input.scalar_type();
  if (path == Path::kPhases && dtype != compute_type(dtype)) {
    const auto wide_bias = bias ? std::optional(in_compute_type(*bias)) : std::nullopt;
    return torch::stable::to(conv_transpose2d_cpu(in_compute_type(input), in_compute_type(weight), wide_bias, stride,
                                                  padding, output_padding, groups, dilation),
                             dtype);
  }
  Tensor output =
      empty_nchw(p.batch, p.out_channels, p.out_h, p.out_w, dtype, input, channels_last);  // [N, Cout, OH, OW]
  if (output.numel() == 0) {
    return output;
  }
  const Tensor x = to_dense(input, channels_last);
  const Tensor w = torch::stable::contiguous(in_compute_type(weight));
  const Tensor b = bias ? torch::stable::contiguous(in_compute_type(*bias)) : Tensor();
  dispatch_floating(dtype, "conv_transpose2d", [&]<typename T>() {
    using acc_t = accumulate_t<T>;
    const acc_t* bias_data = bias ? data<acc_t>(b) : nullptr;
    T* out = static_cast<T*>(output.mutable_data_ptr());
    if (path == Path::kDepthwise) {
      Depthwise<acc_t>{p}.forward(data<T>(x), data<acc_t>(w), bias_data, out);
    } else if constexpr (std::is_same_v<acc_t, float>) {
      if (path == Path::kCells) {
        Cells<float>(p).forward(data<T>(x), data<float>(w), bias_data, out);
      } else if constexpr (std::is_same_v<T, float>) {
        Phases<float>(p).forward(data<float>(x), data<float>(w), bias_data, out);
      }
    }
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> conv_transpose2d_backward_cpu(const Tensor& grad_output,  // [N, Cout, OH, OW]
                                                                 const Tensor& input,        // [N, Cin, H, W]
                                                                 const Tensor& weight,  // [Cin, Cout / groups, KH, KW]
                                                                 IntList stride, IntList padding,
                                                                 IntList output_padding, int64_t groups,
                                                                 IntList dilation, bool need_input, bool need_weight,
                                                                 bool need_bias) {
  const ConvTranspose2dParams p = conv_transpose2d_params("conv_transpose2d_backward", input, weight, stride, padding,
                                                          output_padding, groups, dilation);
  const bool channels_last = is_channels_last(input);
  const Path path = choose_path(p, input.scalar_type(), channels_last, false);
  const Tensor none = torch::stable::new_empty(input, {0});
  if (path == Path::kVendor || grad_output.numel() == 0) {
    const auto grads = vendor_convolution(p).backward(grad_output, input, weight, {need_input, need_weight, need_bias});
    return {grads[0].value_or(none), grads[1].value_or(none), grads[2].value_or(none)};
  }
  const ScalarType dtype = input.scalar_type();
  if (dtype != compute_type(dtype)) {
    const auto [grad_input, grad_weight, grad_bias] = conv_transpose2d_backward_cpu(
        in_compute_type(grad_output), in_compute_type(input), in_compute_type(weight), stride, padding, output_padding,
        groups, dilation, need_input, need_weight, need_bias);
    return {torch::stable::to(grad_input, dtype), torch::stable::to(grad_weight, dtype),
            torch::stable::to(grad_bias, dtype)};
  }
  const Tensor g = to_dense(grad_output, channels_last);
  const Tensor w = torch::stable::contiguous(weight);
  const Tensor x = to_dense(input, channels_last);
  Tensor grad_input =
      need_input ? empty_nchw(p.batch, p.in_channels, p.in_h, p.in_w, dtype, input, channels_last) : none;
  Tensor grad_weight =
      need_weight ? empty_nchw(p.in_channels, weight.size(1), p.kernel_h, p.kernel_w, dtype, weight, false) : none;
  Tensor grad_bias = need_bias ? torch::stable::new_empty(input, {p.out_channels}) : none;
  dispatch_compute(dtype, [&]<typename T>() {
    T* gx = need_input ? static_cast<T*>(grad_input.mutable_data_ptr()) : nullptr;
    T* gw = need_weight ? static_cast<T*>(grad_weight.mutable_data_ptr()) : nullptr;
    T* gb = need_bias ? static_cast<T*>(grad_bias.mutable_data_ptr()) : nullptr;
    if constexpr (std::is_same_v<T, float>) {
      const auto run = [&](const auto& path_kernels) {
        if (need_input) {
          path_kernels.grad_input(data<T>(g), data<T>(w), gx);
        }
        if (need_weight || need_bias) {
          path_kernels.grad_weight(data<T>(x), data<T>(g), gw, gb);
        }
      };
      if (path == Path::kTiled) {
        return run(Tiled<T>{p, channels_last});
      }
      if (path == Path::kPhases) {
        return run(Phases<T>(p));
      }
    }
    Depthwise<T>{p}.backward(data<T>(x), data<T>(w), data<T>(g), gx, gw, gb);
  });
  return {grad_input, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("conv_transpose2d", TORCH_BOX(&conv_transpose2d_cpu));
  m.impl("conv_transpose2d_backward", TORCH_BOX(&conv_transpose2d_backward_cpu));
}

}  // namespace segkernels
