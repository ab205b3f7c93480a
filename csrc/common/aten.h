// torch's own operators that kernels stand on where the stable ABI has no function of its own for them.
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "check.h"

namespace segkernels {

// Values in order, and their positions, int64; of equal ones the lower position first, NaN the largest.
inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& values, bool descending) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(values), from(std::optional<bool>(true)), from(int64_t{-1}), from(descending)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

inline Tensor index_select(const Tensor& values, const Tensor& index) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(values), from(int64_t{0}), from(index)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// On a GPU the host waits for the number of values.
inline Tensor masked_select(const Tensor& values, const Tensor& mask) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(values), from(mask)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::masked_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace segkernels
