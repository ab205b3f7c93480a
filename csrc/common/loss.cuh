// What the GPU kernels of losses over [N, C, H, W] share: maps of any dtype and layout, read four pixels at a time in
// chunks that depend on the shape alone, and sums in a fixed order.
#pragma once

#include <cmath>
#include <optional>
#include <type_traits>

#include "check.h"
#include "cuda.cuh"
#include "dispatch.h"

namespace segkernels {

constexpr int kWarps = kThreads / 32;
constexpr int kFour = 4;  // neighbouring pixels that a thread reads at once
constexpr int64_t kChunkPixels = 4096;

// A dense tensor [N, C, H, W] of any supported dtype.
struct View {
  const void* data;
  ScalarType dtype;
  int64_t channels, pixels;
  bool channels_last;
  bool wide;  // four pixels are one aligned load

  View(const Tensor& tensor, int64_t channels_, int64_t pixels_, bool channels_last_)
      : data(tensor.const_data_ptr()),
        dtype(tensor.scalar_type()),
        channels(channels_),
        pixels(pixels_),
        channels_last(channels_last_ && channels_ > 1) {
    wide = !channels_last && pixels % kFour == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  }
  __host__ __device__ int64_t step() const {
    return channels_last ? channels : 1;
  }
  __host__ __device__ int64_t offset(int64_t n, int64_t c, int64_t pixel) const {
    return channels_last ? (n * pixels + pixel) * channels + c : (n * channels + c) * pixels + pixel;
  }
};

// Where a block works: one chunk of plane (n, c), channels fastest so that channels_last pixels are still in cache.
struct Chunk {
  int64_t n, c, number, begin, end;

  __device__ Chunk(int64_t item, int64_t channels, int64_t pixels, int64_t chunks) {
    const int64_t rest = item / channels;
    c = item - rest * channels;
    n = rest / chunks;
    number = rest - n * chunks;
    begin = number * kChunkPixels;
    end = min(begin + kChunkPixels, pixels);
  }
};

// f with a value of the type that `dtype` names: uniform over a launch, so a branch and not an instantiation.
template <typename F>
__device__ __forceinline__ void with_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(half{});
    case ScalarType::BFloat16:
      return f(bfloat16{});
    case ScalarType::Int:
      return f(int32_t{});
    case ScalarType::Long:
      return f(int64_t{});
    default:  // Byte and Bool
      return f(uint8_t{});
  }
}

template <typename scalar_t>
struct __align__(4 * sizeof(scalar_t) < 16 ? 4 * sizeof(scalar_t) : 16) Four {
  scalar_t values[kFour];
};

// Four pixels of a plane, or the first `count`.
template <typename scalar_t>
__device__ __forceinline__ Four<scalar_t> load_four(const View& view, int64_t offset, int count) {
  const scalar_t* from = static_cast<const scalar_t*>(view.data) + offset;
  if (view.wide) {
    return *reinterpret_cast<const Four<scalar_t>*>(from);
  }
  Four<scalar_t> four{};
#pragma unroll
  for (int k = 0; k < kFour; ++k) {
    if (k < count) {
      four.values[k] = from[k * view.step()];
    }
  }
  return four;
}

struct IgnoredTarget {
  int64_t label;
  bool any;  // is ignored at all

  explicit IgnoredTarget(std::optional<int64_t> ignore_index)
      : label(ignore_index.value_or(0)), any(ignore_index.has_value()) {}
};

// Targets as T, and which of them count. A label other than 0 and 1 is NaN, and so is then the loss: to raise, the host
// would have to wait.
template <typename T>
__device__ __forceinline__ void load_targets(const View& view, const IgnoredTarget& ignore, int64_t offset, int count,
                                             T (&targets)[kFour], bool (&valid)[kFour]) {
  with_type(view.dtype, [&](auto type) {
    using target_t = decltype(type);
    const Four<target_t> four = load_four<target_t>(view, offset, count);
#pragma unroll
    for (int k = 0; k < kFour; ++k) {
      bool ignored;
      bool known = true;
      if constexpr (std::is_integral_v<target_t>) {
        ignored = static_cast<int64_t>(four.values[k]) == ignore.label;
        known = four.values[k] == target_t(0) || four.values[k] == target_t(1);
      } else {
        const target_t label = static_cast<target_t>(static_cast<accumulate_t<target_t>>(ignore.label));
        ignored = static_cast<T>(four.values[k]) == static_cast<T>(label);
      }
      valid[k] = k < count && !(ignore.any && ignored);
      targets[k] = !valid[k] ? T(0) : known ? static_cast<T>(four.values[k]) : static_cast<T>(NAN);
    }
  });
}

template <typename scalar_t>
__device__ __forceinline__ void store_four(const Four<scalar_t>& four, const View& view, int64_t offset, int count) {
  scalar_t* to = static_cast<scalar_t*>(const_cast<void*>(view.data)) + offset;
  if (view.wide) {
    *reinterpret_cast<Four<scalar_t>*>(to) = four;
    return;
  }
#pragma unroll
  for (int k = 0; k < kFour; ++k) {
    if (k < count) {
      to[k * view.step()] = four.values[k];
    }
  }
}

// A dense tensor of logits or of their gradient: float kernels take half types too, and convert them on the way.
struct Logits {
  void* data;
  ScalarType dtype;

  explicit Logits(const Tensor& tensor)
      : data(const_cast<void*>(tensor.const_data_ptr())), dtype(tensor.scalar_type()) {}
};

// f with a value of the type of logits that kernels for T have.
template <typename T, typename F>
__device__ __forceinline__ void with_logit_type(ScalarType dtype, const F& f) {
  if constexpr (std::is_same_v<T, double>) {
    f(double{});
  } else if (dtype == ScalarType::Half) {
    f(half{});
  } else if (dtype == ScalarType::BFloat16) {
    f(bfloat16{});
  } else {
    f(float{});
  }
}

// One value for all channels, one each, or none, which is 1.
struct Weights {
  const double* data = nullptr;
  bool each = false;

  __device__ double at(int64_t c) const {
    return data == nullptr ? 1.0 : data[each ? c : 0];
  }
};

// Sums over the block, in a fixed order; every thread gets them.
template <int kCount>
__device__ void block_sums(double (&values)[kCount]) {
  __shared__ double partial[kWarps][kCount];
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      values[k] += __shfl_xor_sync(0xffffffffu, values[k], lanes);
    }
    if (threadIdx.x % 32 == 0) {
      partial[threadIdx.x / 32][k] = values[k];
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    values[k] = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      values[k] += partial[warp][k];
    }
  }
  __syncthreads();
}

// One thread a value; the index of a register has to be known to the compiler.
template <int kCount>
__device__ __forceinline__ void store_sums(const double (&values)[kCount], double* to) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    if (threadIdx.x == k) {
      to[k] = values[k];
    }
  }
}

// One block per plane: sums of its chunks.
template <int kCount>
__global__ void __launch_bounds__(kThreads) plane_sums_kernel(int64_t planes, int64_t chunks,
                                                              const double* partial,  // [N, C, chunks, kCount]
                                                              double* sums) {         // [N, C, kCount]
  for (int64_t plane = blockIdx.x; plane < planes; plane += gridDim.x) {
    double totals[kCount] = {};
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        totals[k] += partial[(plane * chunks + chunk) * kCount + k];
      }
    }
    block_sums(totals);
    store_sums(totals, sums + plane * kCount);
  }
}

inline Weights weights_of(const std::optional<Tensor>& weights, int64_t channels, const char* op,
                          const char* argument) {
  if (!weights) {
    return {};
  }
  const int64_t count = weights->numel();
  STD_TORCH_CHECK(count == 1 || count == channels, op, ": expected ", argument, " to have one value or ", channels,
                  " (one per channel), got shape ", shape_string(*weights));
  return {static_cast<const double*>(weights->const_data_ptr()), count > 1};
}

inline Tensor as_doubles(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Double));
}

inline std::optional<Tensor> as_doubles(const std::optional<Tensor>& weights) {
  return weights ? std::optional<Tensor>(as_doubles(*weights)) : std::nullopt;
}

inline Tensor empty_doubles(int64_t count, const Tensor& like) {
  return empty({count}, ScalarType::Double, like);
}

inline double* doubles(Tensor& tensor) {
  return static_cast<double*>(tensor.mutable_data_ptr());
}

}  // namespace segkernels
