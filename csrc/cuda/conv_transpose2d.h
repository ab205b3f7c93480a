#pragma once

#include "../common/conv_transpose2d.h"

namespace segkernels {

ConvTranspose2d conv_transpose2d_cuda;
ConvTranspose2dBackward conv_transpose2d_backward_cuda;

}  // namespace segkernels
