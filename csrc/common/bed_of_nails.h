// Sizes of bed-of-nails unpooling, and what is demanded of its arguments.
#pragma once

#include "upsample2d_shape.h"

namespace segkernels {

inline void check_nail_scale(const std::vector<int64_t>& scale, const char* op) {
  STD_TORCH_CHECK(scale.size() == 2 && scale[0] > 0 && scale[1] > 0, op, ": expected scale to be two positive ints");
  STD_TORCH_CHECK(scale[0] <= INT32_MAX && scale[1] <= INT32_MAX, op, ": expected a scale below 2^31");
}

inline Upsample2dShape bed_of_nails_shape(const Tensor& input, const std::vector<int64_t>& scale, const char* op) {
  check_dim(input, 4, op, "input");
  check_nail_scale(scale, op);
  return {input.size(0),
          input.size(1),
          input.size(2),
          input.size(3),
          input.size(2) * scale[0],
          input.size(3) * scale[1],
          is_channels_last(input)};
}

// In this direction the gradient of the output comes in.
inline Upsample2dShape bed_of_nails_backward_shape(const Tensor& grad_output, const std::vector<int64_t>& scale,
                                                   const char* op) {
  check_dim(grad_output, 4, op, "grad_output");
  check_nail_scale(scale, op);
  STD_TORCH_CHECK(grad_output.size(2) % scale[0] == 0 && grad_output.size(3) % scale[1] == 0, op,
                  ": expected grad_output in whole blocks of ", scale[0], "x", scale[1], ", got ",
                  shape_string(grad_output));
  return {grad_output.size(0),
          grad_output.size(1),
          grad_output.size(2),
          grad_output.size(3),
          grad_output.size(2) / scale[0],
          grad_output.size(3) / scale[1],
          is_channels_last(grad_output)};
}

}  // namespace segkernels
