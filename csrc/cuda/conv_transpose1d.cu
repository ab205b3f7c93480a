// Transposed convolution of sequences on the GPU: that of planes, with a height of 1.
#include "../common/conv_transpose1d.h"

#include <torch/csrc/stable/library.h>

#include "../common/cuda.cuh"
#include "conv_transpose2d.h"

namespace segkernels {

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("conv_transpose1d", TORCH_BOX(&conv_transpose1d_by_planes<conv_transpose2d_cuda>));
  m.impl("conv_transpose1d_backward", TORCH_BOX(&conv_transpose1d_backward_by_planes<conv_transpose2d_backward_cuda>));
}

}  // namespace segkernels
