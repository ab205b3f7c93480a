// Kernels that are wrong on purpose; test_faults.py and test_sanitized.py see each of them caught. A comment with the
// kernel's name marks the line that the report must name.
#include "kernels.h"

#include <cuda_pipeline.h>

#include <cstdint>

namespace segkernels {
namespace {

// Reads a neighbour's value without waiting for it.
__global__ void missing_barrier(const float* input, float* output, int) {
  __shared__ float tile[64];
  tile[threadIdx.x] = input[threadIdx.x];
  output[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
}

// The barrier between reading one round and writing the next is missing.
__global__ void missing_second_barrier(const float* input, float* output, int) {
  __shared__ float tile[64];
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    tile[threadIdx.x] = input[threadIdx.x] * round;
    __syncthreads();
    sum += tile[(threadIdx.x + 1) % blockDim.x];
  }
  output[threadIdx.x] = sum;
}

// Lanes of one warp exchange values through memory without __syncwarp.
__global__ void missing_syncwarp(const float* input, float* output, int) {
  float* tile = dynamic_shared<float>();
  tile[threadIdx.x] = input[threadIdx.x];
  output[threadIdx.x] = tile[threadIdx.x ^ 1];
}

__global__ void float_atomic_sum(const float* input, float* output, int) {
  atomicAdd(output, input[blockIdx.x * blockDim.x + threadIdx.x]);
}

// Every block writes the same element.
__global__ void last_block_wins(const float*, float* output, int) {
  output[0] = static_cast<float>(blockIdx.x);
}

// Takes for granted that a warp's lanes arrive together.
__global__ void trusts_activemask(const float*, float* output, int) {
  output[threadIdx.x] = static_cast<float>(__popc(__activemask()));
}

__global__ void uninitialised_shared(const float*, float* output, int) {
  __shared__ float tile[64];
  float* dynamic = dynamic_shared<float>();
  output[threadIdx.x] = threadIdx.x % 2 == 0 ? tile[threadIdx.x] : dynamic[threadIdx.x];
  tile[threadIdx.x] = dynamic[threadIdx.x] = 1.0f;
}

__global__ void missing_copy_wait(const float* input, float* output, int) {
  float* tile = dynamic_shared<float>();
  __pipeline_memcpy_async(&tile[threadIdx.x], &input[threadIdx.x], 4);
  __pipeline_commit();
  __pipeline_wait_prior(1);
  output[threadIdx.x] = tile[threadIdx.x];
}

__global__ void deadlock(const float*, float* output, int) {
  if (threadIdx.x < 16) {
    __syncthreads();  // deadlock
  }
  output[threadIdx.x] = 1.0f;
}

__global__ void divergent_barriers(const float*, float* output, int) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();  // divergent_barriers
  }
  output[threadIdx.x] = 1.0f;
}

__global__ void mask_without_caller(const float* input, float* output, int) {
  output[threadIdx.x] = __shfl_sync(0x0000ffffu, input[threadIdx.x], 0);  // mask_without_caller
}

// Half of the warp waits for the other half, which is at the barrier.
__global__ void mask_of_absent_lanes(const float* input, float* output, int) {
  float value = input[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    value += __shfl_down_sync(0xffffffffu, value, 8);  // mask_of_absent_lanes
  }
  __syncthreads();
  output[threadIdx.x] = value;
}

// Half of the warp has returned, and the other half reads its values.
__global__ void shuffle_from_returned_lane(const float* input, float* output, int) {
  if (threadIdx.x % 32 >= 16) {
    return;
  }
  output[threadIdx.x] = __shfl_xor_sync(0xffffffffu, input[threadIdx.x], 16);  // shuffle_from_returned_lane
}

__global__ void different_masks(const float* input, float* output, int) {
  const unsigned int mask = threadIdx.x % 2 == 0 ? 0xffffffffu : 0xfffffffeu | 1u << threadIdx.x;
  output[threadIdx.x] = __shfl_sync(mask, input[threadIdx.x], 1);  // different_masks
}

__global__ void spin(const float*, float* output, int) {
  while (atomicAdd(reinterpret_cast<int*>(output), 0) == 0) {  // spin
  }
}

__global__ void trap(const float*, float*, int) {
  if (blockIdx.x == 1) {
    __trap();  // trap
  }
}

// Sanitizers only, but for the dynamic memory's end, which has a canary.
__global__ void out_of_bounds_global_write(const float*, float* output, int size) {
  output[size + static_cast<int>(threadIdx.x)] = 1.0f;
}

__global__ void out_of_bounds_global_read(const float* input, float* output, int) {
  output[threadIdx.x] = input[threadIdx.x + 1];
}

__global__ void out_of_bounds_dynamic_shared(const float*, float* output, int) {
  float* tile = dynamic_shared<float>();
  tile[threadIdx.x + 1] = 1.0f;
  output[threadIdx.x] = tile[threadIdx.x];
}

__global__ void out_of_bounds_static_shared(const float* input, float* output, int size) {
  __shared__ float tile[64];
  tile[threadIdx.x] = input[threadIdx.x];
  __syncthreads();
  output[threadIdx.x] = (tile + size)[threadIdx.x];
}

__global__ void misaligned_vector(const float* input, float* output, int) {
  const float4 value = *reinterpret_cast<const float4*>(input + 1);
  output[threadIdx.x] = value.x + value.w;
}

__global__ void signed_overflow(const float* input, float* output, int size) {
  const int row = static_cast<int>(threadIdx.x) + (1 << 26);
  output[threadIdx.x] = input[(row * size) & 7];
}

}  // namespace

SEGKERNELS_TEST_LIBRARY(m) {
  SEGKERNELS_TEST_KERNEL(m, missing_barrier, 0);
  SEGKERNELS_TEST_KERNEL(m, missing_second_barrier, 0);
  SEGKERNELS_TEST_KERNEL(m, missing_syncwarp, 256);
  SEGKERNELS_TEST_KERNEL(m, float_atomic_sum, 0);
  SEGKERNELS_TEST_KERNEL(m, last_block_wins, 0);
  SEGKERNELS_TEST_KERNEL(m, trusts_activemask, 0);
  SEGKERNELS_TEST_KERNEL(m, uninitialised_shared, 256);
  SEGKERNELS_TEST_KERNEL(m, missing_copy_wait, 256);
  SEGKERNELS_TEST_KERNEL(m, deadlock, 0);
  SEGKERNELS_TEST_KERNEL(m, divergent_barriers, 0);
  SEGKERNELS_TEST_KERNEL(m, mask_without_caller, 0);
  SEGKERNELS_TEST_KERNEL(m, mask_of_absent_lanes, 0);
  SEGKERNELS_TEST_KERNEL(m, shuffle_from_returned_lane, 0);
  SEGKERNELS_TEST_KERNEL(m, different_masks, 0);
  SEGKERNELS_TEST_KERNEL(m, spin, 0);
  SEGKERNELS_TEST_KERNEL(m, trap, 0);
  SEGKERNELS_TEST_KERNEL(m, out_of_bounds_global_write, 0);
  SEGKERNELS_TEST_KERNEL(m, out_of_bounds_global_read, 0);
  SEGKERNELS_TEST_KERNEL(m, out_of_bounds_dynamic_shared, 256);
  SEGKERNELS_TEST_KERNEL(m, out_of_bounds_static_shared, 0);
  SEGKERNELS_TEST_KERNEL(m, misaligned_vector, 0);
  SEGKERNELS_TEST_KERNEL(m, signed_overflow, 0);
}

}  // namespace segkernels
