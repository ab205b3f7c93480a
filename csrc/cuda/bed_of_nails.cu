// Bed of nails on the GPU: every output element is written once, zeros included; backward takes one value of each
// block.
#include <torch/csrc/stable/library.h>

#include "../common/bed_of_nails.h"
#include "../common/max_unpool2d.h"
#include "resample_rows.cuh"

namespace segkernels {
namespace {

// Output k * every takes source k * apart.
struct NailAxis {
  int every, apart;

  __device__ int64_t source(int output) const {
    const int nail = output / every;
    return nail * every == output ? static_cast<int64_t>(nail) * apart : -1;
  }
};

Tensor bed_of_nails_cuda(const Tensor& input,  // [N, C, h, w]
                         std::vector<int64_t> scale) {
  const Upsample2dShape s = bed_of_nails_shape(input, scale, "bed_of_nails");
  const Tensor values = to_dense(input, s.channels_last);
  Tensor output = empty_nchw(s.batch, s.channels, s.out_h, s.out_w, input.scalar_type(), input, s.channels_last);
  if (output.numel() == 0) {
    return output;
  }
  check_rows(s, "bed_of_nails");
  dispatch_element(input, "bed_of_nails", [&]<typename T>() {
    take_pixels<T>(s, NailAxis{static_cast<int>(scale[0]), 1}, NailAxis{static_cast<int>(scale[1]), 1}, values, output);
  });
  return output;
}

Tensor bed_of_nails_backward_cuda(const Tensor& grad_output,  // [N, C, H, W]
                                  std::vector<int64_t> scale) {
  const Upsample2dShape s = bed_of_nails_backward_shape(grad_output, scale, "bed_of_nails_backward");
  const Tensor grad = to_dense(grad_output, s.channels_last);
  Tensor grad_input = empty_nchw(s.batch, s.channels, s.out_h, s.out_w, grad.scalar_type(), grad, s.channels_last);
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  check_rows(s, "bed_of_nails_backward");
  dispatch_element(grad, "bed_of_nails_backward", [&]<typename T>() {
    take_pixels<T>(s, NailAxis{1, static_cast<int>(scale[0])}, NailAxis{1, static_cast<int>(scale[1])}, grad,
                   grad_input);
  });
  return grad_input;
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("bed_of_nails", TORCH_BOX(&bed_of_nails_cuda));
  m.impl("bed_of_nails_backward", TORCH_BOX(&bed_of_nails_backward_cuda));
}

}  // namespace segkernels
