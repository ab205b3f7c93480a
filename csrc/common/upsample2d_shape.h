// Sizes of the resampling operators and what is demanded of them.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"

namespace segkernels {

// Sizes of a resampling; channels_last if both of its tensors are.
struct Upsample2dShape {
  int64_t batch, channels;
  int64_t in_h, in_w;
  int64_t out_h, out_w;
  bool channels_last;

  int64_t planes() const {
    return batch * channels;
  }
  // A row of an image is one run of elements in memory; so many elements are a pixel of it.
  int64_t images() const {
    return channels_last ? batch : planes();
  }
  int64_t step() const {
    return channels_last ? channels : 1;
  }
};

inline void check_output_size(const char* op, const char* argument, const std::vector<int64_t>& size,
                              const Tensor& tensor) {
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, op, ": expected ", argument,
                  " to be two positive sizes");
  check_dim(tensor, 4, op, "the tensor");
  STD_TORCH_CHECK(tensor.size(2) > 0 && tensor.size(3) > 0, op, ": expected a height and width of at least 1, got ",
                  shape_string(tensor));
}

inline Upsample2dShape upsample2d_shape(const char* op, const Tensor& input, const std::vector<int64_t>& output_size) {
  check_output_size(op, "output_size", output_size, input);
  return {input.size(0),  input.size(1),  input.size(2),          input.size(3),
          output_size[0], output_size[1], is_channels_last(input)};
}

// In this direction the gradient of the output comes in.
inline Upsample2dShape upsample2d_backward_shape(const char* op, const Tensor& grad_output,
                                                 const std::vector<int64_t>& input_size) {
  check_output_size(op, "input_size", input_size, grad_output);
  return {grad_output.size(0), grad_output.size(1),          input_size[0], input_size[1], grad_output.size(2),
          grad_output.size(3), is_channels_last(grad_output)};
}

}  // namespace segkernels
