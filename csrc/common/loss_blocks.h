// How pixel-wise losses read and write: a plane is cut into chunks (units of parallel work and of float64 sums) and a
// chunk into blocks that live in L1 as float (double for double), whatever the tensor's dtype and layout.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "check.h"
#include "dispatch.h"
#include "parallel.h"
#include "simd.h"
#include "vecmath.h"

namespace segkernels {

constexpr int64_t kBlock = 512;     // pixels; also the longest sum kept in float32
constexpr int64_t kChunk = 8192;    // pixels of one plane; fixed, so that sums do not depend on the number of threads
constexpr int64_t kBlockLanes = 8;  // blocks are padded to a multiple of it

inline int64_t padded(int64_t count) {
  return (count + kBlockLanes - 1) / kBlockLanes * kBlockLanes;
}

// A dense NCHW or channels_last tensor seen plane by plane. Dimensions are [N, C, H, W] or [N, C, L].
struct Planes {
  const void* data;
  ScalarType dtype;
  int64_t channels, pixels;
  bool channels_last;

  int64_t step() const {
    return channels_last ? channels : 1;
  }
  // Element that pixel 0 of plane (n, c) has.
  int64_t start(int64_t n, int64_t c) const {
    return channels_last ? n * channels * pixels + c : (n * channels + c) * pixels;
  }
};

// Calls f(item, n, c, begin, end) for every chunk of every plane, in parallel; `item` numbers them, c fastest, so that
// channels_last pixels are still in cache for the next channel.
template <typename F>
void for_each_chunk(int64_t batch, int64_t channels, int64_t pixels, const F& f) {
  const int64_t chunks = (pixels + kChunk - 1) / kChunk;
  parallel_items(batch * channels * chunks, std::min(pixels, kChunk), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t c = item % channels;
      const int64_t begin = item / channels % chunks * kChunk;
      f(item, item / (channels * chunks), c, begin, std::min(begin + kChunk, pixels));
    }
  });
}

template <typename T, typename scalar_t>
SEGKERNELS_INLINE T to_compute(scalar_t value) {
  if constexpr (std::is_same_v<scalar_t, half>) {
    return half_bits_to_float(value.x);
  } else if constexpr (std::is_same_v<scalar_t, bfloat16>) {
    return bfloat16_bits_to_float(value.x);
  } else {
    return static_cast<T>(value);
  }
}

template <typename T, typename acc_t>
SEGKERNELS_INLINE void store_value(T& to, acc_t value) {
  if constexpr (std::is_same_v<T, half>) {
    to.x = float_to_half_bits(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    to.x = float_to_bfloat16_bits(static_cast<float>(value));
  } else {
    to = static_cast<T>(value);
  }
}

// Every step-th value, between T (float or double) and any floating dtype. These and the next ones are compiled once,
// in loss_blocks.cpp.
template <typename T, typename scalar_t>
void load_values(const scalar_t* from, int64_t step, int64_t count, T* to);

template <typename T, typename scalar_t>
void store_values(const T* from, int64_t step, int64_t count, scalar_t* to);

template <typename T>
void replace_ignored(const int32_t* valid, int64_t count, T with, T* values);

// Pixels [begin, begin + count) of plane (n, c) as T, padded with `neutral`: the tensor's own memory when it can be
// read as it stands, else `buffer`.
template <typename T>
const T* load_block(const Planes& planes, int64_t n, int64_t c, int64_t begin, int64_t count, T neutral, bool copy,
                    T* buffer);

template <typename T>
void store_block(const T* from, const Planes& planes, int64_t n, int64_t c, int64_t begin, int64_t count);

// One block of a binary target: `value` is t as T, `valid` 0 where the pixel is ignored (filled only with an ignore
// label).
template <typename T>
struct TargetBlock {
  alignas(32) T buffer[kBlock];
  int32_t valid[kBlock];
  const T* value = buffer;
  int64_t valid_count = 0;
  bool masked = false;
  bool wrong_label = false;
};

template <typename target_t>
struct IgnoreLabel {
  bool active = false;
  target_t label{};

  explicit IgnoreLabel(std::optional<int64_t> index) {
    if (!index) {
      return;
    }
    if constexpr (std::is_integral_v<target_t>) {
      // A label that the dtype cannot hold occurs nowhere.
      active = *index >= std::numeric_limits<target_t>::min() && *index <= std::numeric_limits<target_t>::max();
    } else {
      active = true;
    }
    label = static_cast<target_t>(*index);
  }
};

template <typename F>
void dispatch_target(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Bool:  // stored as the bytes 0 and 1
    case ScalarType::Byte:
      return f.template operator()<uint8_t>();
    case ScalarType::Int:
      return f.template operator()<int32_t>();
    case ScalarType::Long:
      return f.template operator()<int64_t>();
    default:
      return dispatch_floating(dtype, op, f);
  }
}

// Labels other than 0, 1 and the ignored one are reported; floating targets are soft and may hold any value.
template <typename T>
void load_target_block(const Planes& planes, int64_t n, int64_t c, int64_t begin, int64_t count,
                       std::optional<int64_t> ignore_index, TargetBlock<T>& block);

// Weights of the channels, one value for all of them or one each; 1 when absent.
inline std::vector<double> channel_weights(const std::optional<Tensor>& weights, int64_t channels, const char* op,
                                           const char* argument) {
  std::vector<double> result(channels, 1.0);
  if (!weights) {
    return result;
  }
  const Tensor dense = torch::stable::contiguous(*weights);
  const int64_t count = dense.numel();
  STD_TORCH_CHECK(count == 1 || count == channels, op, ": expected ", argument, " to have one value or ", channels,
                  " (one per channel), got shape ", shape_string(dense));
  dispatch_floating(dense.scalar_type(), op, [&]<typename scalar_t>() {
    const scalar_t* values = static_cast<const scalar_t*>(dense.const_data_ptr());
    for (int64_t c = 0; c < channels; ++c) {
      result[c] = static_cast<double>(to_compute<accumulate_t<scalar_t>>(values[count == 1 ? 0 : c]));
    }
  });
  return result;
}

}  // namespace segkernels
