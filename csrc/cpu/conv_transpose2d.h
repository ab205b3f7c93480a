#pragma once

#include "../common/conv_transpose2d.h"

namespace segkernels {

ConvTranspose2d conv_transpose2d_cpu;
ConvTranspose2dBackward conv_transpose2d_backward_cpu;

}  // namespace segkernels
