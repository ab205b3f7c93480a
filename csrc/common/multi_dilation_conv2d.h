// Geometry of a convolution of several dilations: shapes are checked and named once, for every tier.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"

namespace segkernels {

struct Rate {
  int64_t weight;  // its place in the list
  int64_t kernel_h, kernel_w, dilation;

  int64_t taps() const {
    return kernel_h * kernel_w;
  }
};

struct MultiDilationParams {
  int64_t batch, in_channels, height, width;
  int64_t out_channels;  // of one rate
  std::vector<Rate> rates;
};

inline MultiDilationParams multi_dilation_params(const char* op, const Tensor& input,
                                                 const std::vector<Tensor>& weights,
                                                 const std::vector<int64_t>& dilations) {
  check_dim(input, 4, op, "input");
  STD_TORCH_CHECK(!dilations.empty() && (weights.size() == dilations.size() || weights.size() == 1), op,
                  ": expected one weight, or one for each of ", dilations.size(), " dilations, got ", weights.size());
  for (const Tensor& weight : weights) {
    check_dim(weight, 4, op, "weights");
    check_same_dtype(input, weight, op, "input", "weights");
    STD_TORCH_CHECK(weight.size(0) == weights[0].size(0) && weight.size(1) == input.size(1) &&
                        weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1,
                    op, ": expected weights [", weights[0].size(0), ", ", input.size(1),
                    ", KH, KW] of odd kernel sizes, got shape ", shape_string(weight));
  }
  MultiDilationParams p{input.size(0), input.size(1), input.size(2), input.size(3), weights[0].size(0), {}};
  for (size_t r = 0; r < dilations.size(); ++r) {
    STD_TORCH_CHECK(dilations[r] > 0, op, ": expected positive dilations, got ", dilations[r]);
    const int64_t weight = weights.size() == 1 ? 0 : static_cast<int64_t>(r);
    p.rates.push_back({weight, weights[weight].size(2), weights[weight].size(3), dilations[r]});
  }
  return p;
}

inline void check_multi_dilation_gradient(const char* op, const Tensor& grad_output, const Tensor& input,
                                          const MultiDilationParams& p) {
  const int64_t channels = static_cast<int64_t>(p.rates.size()) * p.out_channels;
  check_dim(grad_output, 4, op, "grad_output");
  STD_TORCH_CHECK(grad_output.size(0) == p.batch && grad_output.size(1) == channels &&
                      grad_output.size(2) == p.height && grad_output.size(3) == p.width,
                  op, ": expected grad_output [", p.batch, ", ", channels, ", ", p.height, ", ", p.width,
                  "], got shape ", shape_string(grad_output));
  check_same_dtype(input, grad_output, op, "input", "grad_output");
}

}  // namespace segkernels
