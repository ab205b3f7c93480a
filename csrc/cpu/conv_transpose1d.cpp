// Transposed convolution of sequences on the CPU: that of planes, with a height of 1.
#include "../common/conv_transpose1d.h"

#include <torch/csrc/stable/library.h>

#include "conv_transpose2d.h"

namespace segkernels {

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("conv_transpose1d", TORCH_BOX(&conv_transpose1d_by_planes<conv_transpose2d_cpu>));
  m.impl("conv_transpose1d_backward", TORCH_BOX(&conv_transpose1d_backward_by_planes<conv_transpose2d_backward_cpu>));
}

}  // namespace segkernels
