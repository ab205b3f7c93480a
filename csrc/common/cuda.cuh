// What every CUDA source needs: the launch with its check, the device guard with its stream, shared memory of a size
// known at launch, grid sizes, and the place where kernels are registered. Everything has a second body for the
// emulation of csrc/emulation, which runs the same source on the CPU in tests.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#if defined(SEGKERNELS_EMULATION)
#define SEGKERNELS_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(segkernels_emulated, CPU, m)
#else
#define SEGKERNELS_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(segkernels, CUDA, m)
#endif

namespace segkernels {

constexpr int kThreads = 256;

inline int device_attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, attribute, device);
  STD_TORCH_CHECK(error == cudaSuccess, "segkernels: cudaDeviceGetAttribute: ", cudaGetErrorString(error));
  return value;
}

#if defined(SEGKERNELS_EMULATION)
class DeviceScope {
 public:
  explicit DeviceScope(const torch::stable::Tensor& /*tensor*/) {}

  cudaStream_t stream() const {
    return nullptr;
  }

  int multiprocessors() const {
    return device_attribute(cudaDevAttrMultiProcessorCount, 0);
  }
};
#else
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
    return device_attribute(cudaDevAttrMultiProcessorCount, device_);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
};
#endif

// Blocks of `threads` that cover `count` items in one go, up to the grid's limit: kernels loop with a grid stride.
inline unsigned int blocks_for(int64_t count, int threads = kThreads) {
  constexpr int64_t kMaxBlocks = int64_t{1} << 30;
  return static_cast<unsigned int>(
      std::min<int64_t>(kMaxBlocks, std::max<int64_t>(1, (count + threads - 1) / threads)));
}

// A row of a plane (NCHW: its columns) or of an image (channels_last: all channels of its columns) is walked by the x
// threads of a block; several short rows share a block. So the divisions that find plane and row are made once a row.
struct RowWalk {
  int64_t rows;
  dim3 grid, block;

  RowWalk(int64_t rows_, int64_t row_elements) : rows(rows_) {
    unsigned int width = 16;
    while (width < kThreads && width < row_elements) {
      width *= 2;
    }
    block = dim3(width, kThreads / width);
    grid = dim3(blocks_for(rows, static_cast<int>(block.y)));
  }
};

// The shared memory of `shared_bytes` that the launch asked for, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(SEGKERNELS_EMULATION)
  return static_cast<T*>(emulation::dynamic_shared_memory());
#else
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
#endif
}

// The only launch in the package, so that the emulation can stand in for it.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Arguments&&... arguments) {
#if defined(SEGKERNELS_EMULATION)
  const std::string error =
      emulation::run_kernel(kernel, grid, block, shared_bytes, std::forward<Arguments>(arguments)...);
  STD_TORCH_CHECK(error.empty(), "segkernels: kernel failed: ", error);
#else
  constexpr size_t kSharedBytesWithoutAsking = 48 * 1024;
  if (shared_bytes > kSharedBytesWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    STD_TORCH_CHECK(error == cudaSuccess, "segkernels: a kernel cannot have ", shared_bytes,
                    " bytes of shared memory: ", cudaGetErrorString(error));
  }
  // clang-format off: it would take the launch's brackets apart
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  // clang-format on
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "segkernels: kernel launch failed: ", cudaGetErrorString(error));
#endif
}

}  // namespace segkernels
