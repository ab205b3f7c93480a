// Nearest-neighbour resampling on the GPU. Forward moves values without looking at them and is instantiated by element
// size; backward sums, for each source pixel, the outputs that took its value.
#include "../common/nearest.h"

#include <torch/csrc/stable/library.h>

#include "../common/max_unpool2d.h"
#include "upsample_adjoint.cuh"

namespace segkernels {
namespace {

// As an axis of bilinear resampling: an output gives all its weight to one source.
template <typename T>
struct NearestTaps : NearestAxis {
  __host__ __device__ BilinearTap<T> tap(int64_t output) const {
    const int64_t from = source(output);
    return {from, from, T(1), T(0)};
  }
};

Tensor upsample_nearest2d_cuda(const Tensor& input,  // [N, C, h, w]
                               std::vector<int64_t> output_size, std::optional<double> scales_h,
                               std::optional<double> scales_w) {
  const Upsample2dShape s = upsample2d_shape("upsample_nearest2d", input, output_size);
  const Tensor source = to_dense(input, s.channels_last);
  Tensor output = empty_nchw(s.batch, s.channels, s.out_h, s.out_w, input.scalar_type(), input, s.channels_last);
  if (output.numel() == 0) {
    return output;
  }
  check_rows(s, "upsample_nearest2d");
  dispatch_element(input, "upsample_nearest2d", [&]<typename T>() {
    take_pixels<T>(s, nearest_axis(s.in_h, s.out_h, scales_h), nearest_axis(s.in_w, s.out_w, scales_w), source, output);
  });
  return output;
}

Tensor upsample_nearest2d_backward_cuda(const Tensor& grad_output,  // [N, C, H, W]
                                        std::vector<int64_t> input_size, std::optional<double> scales_h,
                                        std::optional<double> scales_w) {
  const Upsample2dShape s = upsample2d_backward_shape("upsample_nearest2d_backward", grad_output, input_size);
  const Tensor grad = to_dense(grad_output, s.channels_last);
  Tensor grad_input = empty_nchw(s.batch, s.channels, s.in_h, s.in_w, grad.scalar_type(), grad, s.channels_last);
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  check_rows(s, "upsample_nearest2d_backward");
  dispatch_floating(grad.scalar_type(), "upsample_nearest2d_backward", [&]<typename scalar_t>() {
    using Taps = NearestTaps<accumulate_t<scalar_t>>;
    gather_gradient<false, scalar_t>(s, Taps{nearest_axis(s.in_h, s.out_h, scales_h)},
                                     Taps{nearest_axis(s.in_w, s.out_w, scales_w)}, grad, grad_input);
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("upsample_nearest2d", TORCH_BOX(&upsample_nearest2d_cuda));
  m.impl("upsample_nearest2d_backward", TORCH_BOX(&upsample_nearest2d_backward_cuda));
}

}  // namespace segkernels
