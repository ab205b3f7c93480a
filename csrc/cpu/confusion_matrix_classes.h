// The class of each pixel from its logits: lowest class of the largest one, NaN being the largest, as torch.argmax.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/dispatch.h"
#include "../common/simd.h"

namespace segkernels {

constexpr int64_t kCacheLine = 64;
constexpr int64_t kPlaneBlock = 1024;  // pixels of one class read in a row: a page of float32
constexpr int64_t kTile = 64;          // pixels of channels_last logits whose best logits stay in registers and L1

// Half types are compared as integers that order like them; NaN is the largest, as it is for torch.argmax.
template <typename scalar_t>
struct Order {
  using key_t = scalar_t;
  static SEGKERNELS_INLINE key_t key(scalar_t value) {
    return value;
  }
  // NaN beats every number, and the first NaN stays.
  static SEGKERNELS_INLINE bool greater(key_t a, key_t b) {
    return !(a <= b) & (b == b);
  }
};

template <typename half_t, int32_t kInfinity>
struct HalfOrder {
  using key_t = int32_t;
  static SEGKERNELS_INLINE key_t key(half_t value) {
    const int32_t magnitude = value.x & 0x7fff;
    const int32_t number = value.x & 0x8000 ? -magnitude : magnitude;
    return magnitude > kInfinity ? 0x7fff : number;
  }
  static SEGKERNELS_INLINE bool greater(key_t a, key_t b) {
    return a > b;
  }
};
template <>
struct Order<half> : HalfOrder<half, 0x7c00> {};
template <>
struct Order<bfloat16> : HalfOrder<bfloat16, 0x7f80> {};

template <typename scalar_t>
using key_t = typename Order<scalar_t>::key_t;

// Lowest class of the largest logit of each of up to kPlaneBlock pixels; class c of pixel i lies at logits[c * step +
// i].
template <typename scalar_t>
SEGKERNELS_CLONES void argmax_planes(const scalar_t* logits, int64_t classes, int64_t step, int64_t count,
                                     int32_t* bins) {
  using order = Order<scalar_t>;
  key_t<scalar_t> best[kPlaneBlock];
  for (int64_t i = 0; i < count; ++i) {
    best[i] = order::key(logits[i]);
    bins[i] = 0;
  }
  for (int64_t c = 1; c < classes; ++c) {
    const scalar_t* plane = logits + c * step;
    // The hardware's prefetcher starts anew in every plane.
    for (int64_t i = 0; c + 1 < classes && i < count; i += kCacheLine / sizeof(scalar_t)) {
      __builtin_prefetch(plane + step + i);
    }
    for (int64_t i = 0; i < count; ++i) {
      const key_t<scalar_t> value = order::key(plane[i]);
      const bool take = order::greater(value, best[i]);
      best[i] = take ? value : best[i];
      bins[i] = take ? static_cast<int32_t>(c) : bins[i];
    }
  }
}

// The same for channels_last, class c of pixel i at logits[i * classes + c].
template <typename scalar_t>
SEGKERNELS_CLONES void argmax_pixels(const scalar_t* logits, int64_t classes, int64_t count, int32_t* bins) {
  using order = Order<scalar_t>;
  for (int64_t start = 0; start < count; start += kTile) {
    const int64_t tile = std::min(kTile, count - start);
    const scalar_t* pixels = logits + start * classes;
    key_t<scalar_t> best[kTile];
    int32_t* bin = bins + start;
    for (int64_t i = 0; i < tile; ++i) {
      best[i] = order::key(pixels[i * classes]);
      bin[i] = 0;
    }
    for (int64_t c = 1; c < classes; ++c) {
      for (int64_t i = 0; i < tile; ++i) {
        const key_t<scalar_t> value = order::key(pixels[i * classes + c]);
        const bool take = order::greater(value, best[i]);
        best[i] = take ? value : best[i];
        bin[i] = take ? static_cast<int32_t>(c) : bin[i];
      }
    }
  }
}

}  // namespace segkernels
