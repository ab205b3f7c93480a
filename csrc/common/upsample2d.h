// Loops over pixels of the resampling operators on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dispatch.h"
#include "loss_blocks.h"
#include "parallel.h"
#include "simd.h"
#include "upsample2d_shape.h"

namespace segkernels {

// Neighbouring output pixels that share their source columns and are computed as one vector.
template <typename acc_t>
constexpr int64_t kLanes = 32 / sizeof(acc_t);

template <typename scalar_t, typename acc_t>
SEGKERNELS_INLINE void store_one(acc_t value, scalar_t* to) {
  if constexpr (std::is_same_v<scalar_t, half>) {
    to->x = float_to_half_bits(value);
  } else if constexpr (std::is_same_v<scalar_t, bfloat16>) {
    to->x = float_to_bfloat16_bits(value);
  } else {
    *to = value;
  }
}

// Asks for memory that is read, or written, next: where rows are short, the CPU does not foresee the next one.
template <bool kWrite, typename T>
SEGKERNELS_INLINE void prefetch(const T* from, int64_t count) {
  constexpr int64_t kMost = 16384;  // half of a first-level cache
  const char* bytes = reinterpret_cast<const char*>(from);
  const int64_t size = std::min(count * static_cast<int64_t>(sizeof(T)), kMost);
  for (int64_t i = 0; i < size; i += 64) {
    __builtin_prefetch(bytes + i, kWrite);
  }
}

// Calls f.operator()<V>(c) with V a vector, or a scalar for pixels smaller than one. The last vector overlaps the one
// before, so that an odd number of channels has no scalar rest.
template <typename acc_t, typename F>
SEGKERNELS_INLINE void for_each_vector(int64_t channels, const F& f) {
  typedef acc_t values_t __attribute__((vector_size(32)));
  if (channels < kLanes<acc_t>) {
    for (int64_t c = 0; c < channels; ++c) {
      f.template operator()<acc_t>(c);
    }
    return;
  }
  for (int64_t c = 0; c + kLanes<acc_t> <= channels; c += kLanes<acc_t>) {
    f.template operator()<values_t>(c);
  }
  if (channels % kLanes<acc_t> != 0) {
    f.template operator()<values_t>(channels - kLanes<acc_t>);
  }
}

}  // namespace segkernels
