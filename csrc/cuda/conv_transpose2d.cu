// Transposed convolution on the GPU: which path runs. The table is `choose_path`; each path is a header of its own.
#include "conv_transpose2d.h"

#include <torch/csrc/stable/library.h>

#include "../common/vendor.h"
#include "conv_transpose2d_depthwise.cuh"
#include "conv_transpose2d_tiles.cuh"

namespace segkernels {
namespace {

enum class Path { kTiles, kDepthwise, kVendor };

// cuDNN does the rest: float32, for which it obeys torch's flag for TF32, that the stable ABI cannot read; kernels that
// overlap; shapes whose rows are not multiples of 16 bytes.
Path choose_path(const ConvTranspose2dParams& p, ScalarType dtype, bool channels_last, bool forward) {
  if (tiles_apply(p, dtype, channels_last, forward)) {
    return Path::kTiles;
  }
  return depthwise_gpu_applies(p) ? Path::kDepthwise : Path::kVendor;
}

bool aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

// The types that the tiles take.
template <typename F>
void dispatch_half(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Half) {
    f.template operator()<half>();
  } else {
    f.template operator()<bfloat16>();
  }
}

}  // namespace

Tensor conv_transpose2d_cuda(const Tensor& input,                // [N, Cin, H, W]
                             const Tensor& weight,               // [Cin, Cout / groups, KH, KW]
                             const std::optional<Tensor>& bias,  // [Cout]
                             IntList stride, IntList padding, IntList output_padding, int64_t groups,
                             IntList dilation) {
  const ConvTranspose2dParams p =
      conv_transpose2d_params("conv_transpose2d", input, weight, stride, padding, output_padding, groups, dilation);
  const ScalarType dtype = input.scalar_type();
  const bool channels_last = is_channels_last(input);
  Path path = choose_path(p, dtype, channels_last, true);
  if (input.numel() == 0 || weight.numel() == 0) {
    path = Path::kVendor;
  }
  Tensor x, w, b;
  if (path != Path::kVendor) {
    x = to_dense(input, channels_last);
    w = to_dense(weight, path == Path::kTiles && channels_last);
    b = bias ? torch::stable::contiguous(*bias) : Tensor();
    if (path == Path::kTiles && !(aligned(x) && aligned(w))) {
      path = Path::kVendor;
    }
  }
  if (path == Path::kVendor) {
    return to_dense(vendor_convolution(p).forward(input, weight, bias), channels_last);
  }
  Tensor output = empty_nchw(p.batch, p.out_channels, p.out_h, p.out_w, dtype, input, channels_last);
  const DeviceScope scope(input);
  const auto run = [&]<typename T>(const auto& kernels) {
    kernels.forward(data<T>(x), data<T>(w), bias ? data<T>(b) : nullptr, static_cast<T*>(output.mutable_data_ptr()),
                    scope.stream());
  };
  if (path == Path::kTiles) {
    dispatch_half(dtype, [&]<typename T>() { run.template operator()<T>(Tiles<T>(p, channels_last)); });
  } else {
    dispatch_floating(dtype, "conv_transpose2d",
                      [&]<typename T>() { run.template operator()<T>(DepthwiseGpu<T>{p, channels_last}); });
  }
  return output;
}

std::tuple<Tensor, Tensor, Tensor> conv_transpose2d_backward_cuda(const Tensor& grad_output,  // [N, Cout, OH, OW]
                                                                  const Tensor& input,        // [N, Cin, H, W]
                                                                  const Tensor& weight,  // [Cin, Cout / groups, KH, KW]
                                                                  IntList stride, IntList padding,
                                                                  IntList output_padding, int64_t groups,
                                                                  IntList dilation, bool need_input, bool need_weight,
                                                                  bool need_bias) {
  const char* op = "conv_transpose2d_backward";
  const ConvTranspose2dParams p =
      conv_transpose2d_params(op, input, weight, stride, padding, output_padding, groups, dilation);
  const ScalarType dtype = input.scalar_type();
  const bool channels_last = is_channels_last(input);
  const Tensor none = torch::stable::new_empty(input, {0});
  Path path = choose_path(p, dtype, channels_last, false);
  if (input.numel() == 0 || weight.numel() == 0) {
    path = Path::kVendor;
  }
  Tensor g, x, w;
  if (path != Path::kVendor) {
    g = to_dense(grad_output, channels_last);
    x = to_dense(input, channels_last);
    w = to_dense(weight, path == Path::kTiles);
    if (path == Path::kTiles && !(aligned(g) && aligned(x) && aligned(w))) {
      path = Path::kVendor;
    }
  }
  if (path == Path::kVendor) {
    const auto grads = vendor_convolution(p).backward(grad_output, input, weight, {need_input, need_weight, need_bias});
    return {need_input ? to_dense(*grads[0], channels_last) : none,
            need_weight ? torch::stable::contiguous(*grads[1]) : none, need_bias ? *grads[2] : none};
  }
  Tensor grad_input =
      need_input ? empty_nchw(p.batch, p.in_channels, p.in_h, p.in_w, dtype, input, channels_last) : none;
  Tensor grad_weight =
      need_weight ? empty_nchw(p.in_channels, weight.size(1), p.kernel_h, p.kernel_w, dtype, weight, false) : none;
  const DeviceScope scope(input);
  const auto run = [&]<typename T>(const auto& kernels) {
    if (need_input) {
      kernels.grad_input(data<T>(g), data<T>(w), static_cast<T*>(grad_input.mutable_data_ptr()), scope.stream());
    }
    if (need_weight) {
      using acc_t = accumulate_t<T>;
      Tensor partial = torch::stable::new_empty(input, {kernels.chunks(), weight.numel()},
                                                std::is_same_v<acc_t, double> ? ScalarType::Double : ScalarType::Float);
      kernels.grad_weight(data<T>(x), data<T>(g), static_cast<acc_t*>(partial.mutable_data_ptr()),
                          static_cast<T*>(grad_weight.mutable_data_ptr()), scope.stream());
    }
  };
  if (path == Path::kTiles) {
    dispatch_half(dtype, [&]<typename T>() { run.template operator()<T>(Tiles<T>(p, channels_last)); });
  } else {
    dispatch_floating(dtype, op, [&]<typename T>() { run.template operator()<T>(DepthwiseGpu<T>{p, channels_last}); });
  }
  constexpr int64_t kAllButChannels[] = {0, 2, 3};
  const Tensor grad_bias =
      need_bias ? torch::stable::sum(g, torch::headeronly::IntHeaderOnlyArrayRef(kAllButChannels, 3)) : none;
  return {grad_input, grad_weight, grad_bias};
}

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("conv_transpose2d", TORCH_BOX(&conv_transpose2d_cuda));
  m.impl("conv_transpose2d_backward", TORCH_BOX(&conv_transpose2d_backward_cuda));
}

}  // namespace segkernels
