// Stands in for the CUDA runtime's header when a .cu is compiled as C++: this folder comes first on the include path.
#pragma once

#define SEGKERNELS_EMULATION 1

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
// One copy per block, and blocks run one after the other. Thread-local variables lie together in a segment of their
// own, which is refilled with 0xFF; AddressSanitizer puts redzones around plain statics only.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "atomics.h"
#include "intrinsics.h"
#include "scheduler.h"
#include "vectors.h"
#include "warp.h"

using cudaStream_t = struct CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}

// One multiprocessor, so that blocks of small test inputs already loop over their share.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 1;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(segkernels::emulation::kMaxSharedBytes);
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

inline cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

namespace segkernels::emulation {

// Runs kernel(arguments...) for every thread; each gets its own copy of the arguments, as on the device.
template <typename... Parameters, typename... Arguments>
std::string run_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                       Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  } call{kernel, std::tuple<Parameters...>(static_cast<Parameters>(std::forward<Arguments>(arguments))...)};
  return run_grid(
      grid, block, shared_bytes,
      [](void* context) {
        const Call& c = *static_cast<const Call*>(context);
        std::apply(c.kernel, c.parameters);
      },
      &call);
}

}  // namespace segkernels::emulation
