// Sizes, checks and loops over pixels of the resampling operators on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"
#include "dispatch.h"
#include "loss_blocks.h"
#include "parallel.h"
#include "simd.h"

namespace segkernels {

// Neighbouring output pixels that share their source columns and are computed as one vector.
template <typename acc_t>
constexpr int64_t kLanes = 32 / sizeof(acc_t);

// Sizes of a resampling; channels_last if both of its tensors are.
struct Upsample2dShape {
  int64_t batch, channels;
  int64_t in_h, in_w;
  int64_t out_h, out_w;
  bool channels_last;

  int64_t planes() const {
    return batch * channels;
  }
};

inline void check_output_size(const char* op, const char* argument, const std::vector<int64_t>& size,
                              const Tensor& tensor) {
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0, op, ": expected ", argument,
                  " to be two positive sizes");
  check_dim(tensor, 4, op, "the tensor");
  STD_TORCH_CHECK(tensor.size(2) > 0 && tensor.size(3) > 0, op, ": expected a height and width of at least 1, got ",
                  shape_string(tensor));
}

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
