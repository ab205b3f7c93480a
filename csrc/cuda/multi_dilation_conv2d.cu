// Convolutions of several dilations over one map on the GPU: the vendor's convolution for each rate, whose tensor-core
// kernels an implicit product of our own would have to beat by more than the one copy that sets the rates side by side.
#include "../common/multi_dilation_conv2d.h"

#include <torch/csrc/stable/library.h>

#include "../common/cuda.cuh"
#include "../common/dispatch.h"
#include "../common/vendor.h"

namespace segkernels {
namespace {

VendorConvolution convolution_of(const Rate& rate) {
  return {{1, 1},
          {rate.dilation * (rate.kernel_h / 2), rate.dilation * (rate.kernel_w / 2)},
          {rate.dilation, rate.dilation},
          {0, 0},
          false,
          1};
}

template <typename scalar_t>
__global__ void add_kernel(int64_t count, const scalar_t* values, scalar_t* sums) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    sums[i] = static_cast<scalar_t>(static_cast<accumulate_t<scalar_t>>(sums[i]) +
                                    static_cast<accumulate_t<scalar_t>>(values[i]));
  }
}

// Of the gradients of several rates; both dense in one layout. An empty sum becomes the value.
void add(Tensor& sum, const Tensor& value) {
  if (sum.numel() == 0) {
    sum = value;
    return;
  }
  const DeviceScope scope(value);
  dispatch_floating(value.scalar_type(), "multi_dilation_conv2d_backward", [&]<typename scalar_t>() {
    launch(add_kernel<scalar_t>, blocks_for(value.numel()), kThreads, 0, scope.stream(), value.numel(),
           static_cast<const scalar_t*>(value.const_data_ptr()), static_cast<scalar_t*>(sum.mutable_data_ptr()));
  });
}

Tensor multi_dilation_conv2d_cuda(const Tensor& input,                 // [N, C, H, W]
                                  const std::vector<Tensor>& weights,  // each [O, C, KH, KW]
                                  std::vector<int64_t> dilations) {
  const MultiDilationParams p = multi_dilation_params("multi_dilation_conv2d", input, weights, dilations);
  const int64_t rates = static_cast<int64_t>(p.rates.size());
  Tensor output = empty_nchw(p.batch, rates * p.out_channels, p.height, p.width, input.scalar_type(), input,
                             is_channels_last(input));  // [N, R * O, H, W]
  for (int64_t r = 0; r < rates && output.numel() > 0; ++r) {
    Tensor slice = torch::stable::narrow(output, 1, r * p.out_channels, p.out_channels);
    torch::stable::copy_(slice, convolution_of(p.rates[r]).forward(input, weights[p.rates[r].weight], std::nullopt));
  }
  return output;
}

// Gradients of the input and of each weight; those that are not asked for come back empty.
std::vector<Tensor> multi_dilation_conv2d_backward_cuda(const Tensor& grad_output,           // [N, R * O, H, W]
                                                        const Tensor& input,                 // [N, C, H, W]
                                                        const std::vector<Tensor>& weights,  // each [O, C, KH, KW]
                                                        std::vector<int64_t> dilations, bool need_input,
                                                        bool need_weights) {
  const char* op = "multi_dilation_conv2d_backward";
  const MultiDilationParams p = multi_dilation_params(op, input, weights, dilations);
  const int64_t rates = static_cast<int64_t>(p.rates.size());
  const bool channels_last = is_channels_last(input);
  check_multi_dilation_gradient(op, grad_output, input, p);
  std::vector<Tensor> grads;
  for (size_t i = 0; i <= weights.size(); ++i) {
    grads.push_back(torch::stable::new_empty(input, {0}));
  }
  for (int64_t r = 0; r < rates; ++r) {
    const Rate& rate = p.rates[r];
    Tensor upstream = grad_output;
    const Tensor slice =
        to_dense(torch::stable::narrow(upstream, 1, r * p.out_channels, p.out_channels), channels_last);
    const auto found =
        convolution_of(rate).backward(slice, input, weights[rate.weight], {need_input, need_weights, false});
    if (found[0]) {
      add(grads[0], to_dense(*found[0], channels_last));
    }
    if (found[1]) {
      add(grads[1 + rate.weight], to_dense(*found[1], false));
    }
  }
  return grads;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("multi_dilation_conv2d", TORCH_BOX(&multi_dilation_conv2d_cuda));
  m.impl("multi_dilation_conv2d_backward", TORCH_BOX(&multi_dilation_conv2d_backward_cuda));
}

}  // namespace segkernels
