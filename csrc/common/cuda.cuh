// What every CUDA source needs: the launch with its check, the device guard with its stream, and grid sizes.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace segkernels {

constexpr int kThreads = 256;

// Makes a tensor's device current and hands out that device's current stream: both from the same index.
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor& tensor)
      : guard_(tensor.get_device_index()), device_(tensor.get_device_index()) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

  int multiprocessors() const {
    int count = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_);
    STD_TORCH_CHECK(error == cudaSuccess, "segkernels: cudaDeviceGetAttribute: ", cudaGetErrorString(error));
    return count;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
};

// Blocks of `threads` that cover `count` items in one go, up to the grid's limit: kernels loop with a grid stride.
inline unsigned int blocks_for(int64_t count, int threads = kThreads) {
  constexpr int64_t kMaxBlocks = int64_t{1} << 30;
  return static_cast<unsigned int>(
      std::min<int64_t>(kMaxBlocks, std::max<int64_t>(1, (count + threads - 1) / threads)));
}

#if defined(__CUDACC__)
// The only launch in the package, so that the CPU emulation of csrc/emulation can stand in for it.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "segkernels: kernel launch failed: ", cudaGetErrorString(error));
}
#endif

}  // namespace segkernels
