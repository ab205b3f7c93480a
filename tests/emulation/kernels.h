// How the kernels of these tests become operators: segkernels_faults::<kernel>(input, size, blocks, threads) returns
// `size` floats, zero at first. tests/emulation/kernels.py defines the schemas.
#pragma once

#include "../../csrc/common/cuda.cuh"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../../csrc/common/check.h"

#if defined(SEGKERNELS_EMULATION)
#define SEGKERNELS_TEST_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(segkernels_faults, CPU, m)
#else
#define SEGKERNELS_TEST_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(segkernels_faults, CUDA, m)
#endif
#define SEGKERNELS_TEST_KERNEL(m, kernel, shared_bytes) m.impl(#kernel, TORCH_BOX((&run<kernel, shared_bytes>)))

namespace segkernels {

using TestKernel = void (*)(const float* input, float* output, int size);

template <TestKernel kernel, int64_t kSharedBytes>
Tensor run(const Tensor& input, int64_t size, int64_t blocks, int64_t threads) {
  Tensor output = torch::stable::new_empty(input, {size}, ScalarType::Float);
  torch::stable::zero_(output);
  const DeviceScope scope(input);
  launch(kernel, static_cast<unsigned int>(blocks), static_cast<unsigned int>(threads), kSharedBytes, scope.stream(),
         static_cast<const float*>(input.const_data_ptr()), static_cast<float*>(output.mutable_data_ptr()),
         static_cast<int>(size));
  return output;
}

}  // namespace segkernels
