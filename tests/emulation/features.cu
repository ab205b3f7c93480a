// Kernels that are right: what the emulation offers, each used as an operator would use it (test_features.py).
#include "kernels.h"
#include "../../csrc/common/mma.cuh"

#include <cuda_pipeline.h>

#include <cstdint>

namespace segkernels {
namespace {

__device__ float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, distance);
  }
  return value;
}

// One sum per block: shuffles, dynamic shared memory, and a divergent second stage in the first warp.
__global__ void block_sum(const float* input, float* output, int) {
  float* partial = dynamic_shared<float>();
  const float sum = warp_sum(input[blockIdx.x * blockDim.x + threadIdx.x]);
  if (threadIdx.x % 32 == 0) {
    partial[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const float total = warp_sum(threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) {
      output[blockIdx.x] = total;
    }
  }
}

// A 32x32 tile per block through static shared memory; many rounds, so that every barrier matters.
__global__ void transpose(const float* input, float* output, int size) {
  __shared__ float tile[32][33];
  const int width = 32;
  for (int first = blockIdx.x * 1024; first < size; first += gridDim.x * 1024) {
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) {
      tile[i / width][i % width] = input[first + i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) {
      output[first + i] = tile[i % width][i / width];
    }
    __syncthreads();
  }
}

// The two halves of a warp take different branches, each with its own mask.
__global__ void divergent_shuffles(const float* input, float* output, int) {
  const float value = input[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    output[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, value, 1);
  } else {
    const float once = __shfl_xor_sync(0xffff0000u, value, 2);
    output[threadIdx.x] = __shfl_xor_sync(0xffff0000u, once, 4);
  }
  __syncwarp();
  output[threadIdx.x] += __shfl_sync(0xffffffffu, value, 3, 8) + __shfl_up_sync(0xffffffffu, value, 1);
}

__global__ void votes(const float* input, float* output, int) {
  const int positive = input[threadIdx.x] > 0;
  const unsigned int ballot = __ballot_sync(0xffffffffu, positive);
  const int count = __syncthreads_count(positive);
  const int some = __syncthreads_or(positive) + __any_sync(0xffffffffu, positive);
  const int all = __syncthreads_and(positive) + __all_sync(0xffffffffu, positive);
  const unsigned int sum = __reduce_add_sync(0xffffffffu, static_cast<unsigned int>(positive));
  const unsigned int same = __match_any_sync(0xffffffffu, positive);
  const bool agree = sum == static_cast<unsigned int>(__popc(ballot)) && same == (positive ? ballot : ~ballot);
  output[threadIdx.x] = static_cast<float>(count * 100 + some * 10 + all + (agree ? 0 : 1000000));
}

// Adds up however many lanes turn out to be active: the total does not depend on it.
__global__ void active_lanes_add(const float*, float* output, int) {
  if (threadIdx.x % 3 != 0) {
    const unsigned int active = __activemask();
    if (static_cast<int>(threadIdx.x % 32) == __ffs(static_cast<int>(active)) - 1) {
      atomicAdd(reinterpret_cast<int*>(output), __popc(active));
    }
  }
}

// Integer histogram, a compare-and-swap maximum, and the ticket that tells the last block.
__global__ void atomics(const float* input, float* output, int size) {
  __shared__ bool last;
  int* counts = reinterpret_cast<int*>(output);
  const float value = input[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&counts[static_cast<int>(value) % 4], 1);
  int seen = counts[4];
  while (__int_as_float(seen) < value) {
    const int before = atomicCAS(&counts[4], seen, __float_as_int(value));
    if (before == seen) {
      break;
    }
    seen = before;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(reinterpret_cast<unsigned int*>(&counts[5]), gridDim.x) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    counts[size - 1] = counts[0] + counts[1] + counts[2] + counts[3];
  }
}

// Double-buffered copies of 16 bytes, two stages in flight, the tail filled with zeros.
__global__ void pipelined_copy(const float* input, float* output, int size) {
  float4* tile = dynamic_shared<float4>();  // [2, threads]
  const int threads = blockDim.x;
  const int rounds = (size + 4 * threads - 1) / (4 * threads);
  const auto fetch = [&](int round) {
    const int first = 4 * (round * threads + static_cast<int>(threadIdx.x));
    const int valid = max(0, min(4, size - first));
    __pipeline_memcpy_async(&tile[round % 2 * threads + threadIdx.x], valid > 0 ? input + first : input, 16,
                            16 - 4 * valid);
    __pipeline_commit();
  };
  fetch(0);
  for (int round = 0; round < rounds; ++round) {
    if (round + 1 < rounds) {
      fetch(round + 1);
      __pipeline_wait_prior(1);
    } else {
      __pipeline_wait_prior(0);
    }
    __syncthreads();
    const int other = threads - 1 - static_cast<int>(threadIdx.x);
    const float4 value = tile[round % 2 * threads + other];
    const int first = 4 * (round * threads + other);
    if (first < size) {
      output[first / 4] = value.x + value.y + value.z + value.w;
    }
    __syncthreads();
  }
}

// D[16, 8] = A[16, depth] B[depth, 8], both row-major in `input`, B after A.
template <typename T>
__device__ void half_product(const float* input, float* output, int depth) {
  T* a = dynamic_shared<T>();  // [16, 16]
  T* b = a + 256;              // [16, 16], the right half unused
  const int lane = threadIdx.x;
  float c[4] = {0, 0, 0, 0};
  for (int first = 0; first < depth; first += 16) {
    for (int i = lane; i < 256; i += 32) {
      a[i] = static_cast<T>(input[i / 16 * depth + first + i % 16]);
      b[i] = static_cast<T>(i % 16 < 8 ? input[16 * depth + (first + i / 16) * 8 + i % 16] : 0.0f);
    }
    __syncwarp();
    uint32_t a_words[4], b_words[4];
    load_matrix_x4(a_words, a + (lane % 16) * 16 + lane / 16 * 8);
    load_matrix_x4<true>(b_words, b + (lane % 16) * 16 + lane / 16 * 8);
    const uint32_t b_left[2] = {b_words[0], b_words[1]};
    mma_m16n8k16<T>(c, a_words, b_left);
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) {
    output[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = c[i];
  }
}

__global__ void product_half(const float* input, float* output, int) {
  half_product<half>(input, output, 48);
}

__global__ void product_bfloat16(const float* input, float* output, int) {
  half_product<bfloat16>(input, output, 48);
}

__global__ void product_tf32(const float* input, float* output, int) {
  constexpr int kDepth = 24;
  const int group = threadIdx.x / 4, pair = threadIdx.x % 4;
  float c[4] = {0, 0, 0, 0};
  for (int first = 0; first < kDepth; first += 8) {
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i) {
      a[i] = to_tf32(input[(group + i % 2 * 8) * kDepth + first + pair + i / 2 * 4]);
    }
    for (int i = 0; i < 2; ++i) {
      b[i] = to_tf32(input[16 * kDepth + (first + pair + 4 * i) * 8 + group]);
    }
    mma_m16n8k8_tf32(c, a, b);
  }
  for (int i = 0; i < 4; ++i) {
    output[(group + i / 2 * 8) * 8 + pair * 2 + i % 2] = c[i];
  }
}

}  // namespace

SEGKERNELS_TEST_LIBRARY(m) {
  SEGKERNELS_TEST_KERNEL(m, block_sum, 128);
  SEGKERNELS_TEST_KERNEL(m, transpose, 0);
  SEGKERNELS_TEST_KERNEL(m, divergent_shuffles, 0);
  SEGKERNELS_TEST_KERNEL(m, votes, 0);
  SEGKERNELS_TEST_KERNEL(m, active_lanes_add, 0);
  SEGKERNELS_TEST_KERNEL(m, atomics, 0);
  SEGKERNELS_TEST_KERNEL(m, pipelined_copy, 2048);
  SEGKERNELS_TEST_KERNEL(m, product_half, 1024);
  SEGKERNELS_TEST_KERNEL(m, product_bfloat16, 1024);
  SEGKERNELS_TEST_KERNEL(m, product_tf32, 0);
}

}  // namespace segkernels
