// Transcendental functions that vectorise: no branches, no tables, no calls. Every function takes a float or eight of
// them (f32x8) and is written once; the double versions call the standard library.
//
// Errors are those of float32 with fused multiply-add, over the stated domain, against the exact value. NaN goes
// through.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "simd.h"

namespace segkernels {

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));

// What a loop over T steps by, and the integers of the same width.
template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  using vector = f32x8;
  static constexpr int64_t count = 8;
};
template <>
struct Lanes<double> {
  using vector = double;
  static constexpr int64_t count = 1;
};

template <typename V>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
  using bits = uint32_t;  // wraps around
};
template <>
struct IntegerOf<f32x8> {
  using type = i32x8;
  using bits = u32x8;
};

template <typename V, typename T>
SEGKERNELS_INLINE V load_vector(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof(V));
  return value;
}

template <typename V, typename T>
SEGKERNELS_INLINE void store_vector(T* to, V value) {
  std::memcpy(to, &value, sizeof(V));
}

template <typename To, typename From>
SEGKERNELS_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// -|x|, in one instruction; NaN stays.
template <typename V>
SEGKERNELS_INLINE V negative_abs(V x) {
  using I = typename IntegerOf<V>::type;
  return bit_cast<V>(bit_cast<I>(x) | std::numeric_limits<int32_t>::min());
}
SEGKERNELS_INLINE double negative_abs(double x) {
  return -std::fabs(x);
}

// Sum of the lanes, pair by pair.
SEGKERNELS_INLINE double sum_lanes(f32x8 x) {
  return static_cast<double>(((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])));
}
SEGKERNELS_INLINE double sum_lanes(double x) {
  return x;
}

// exp(x) for x <= 0, within 1.1 ulp; 0 where the result would be subnormal (x < -87.33), since subnormals cost an
// assist each on many CPUs. Minimax after reduction to [-ln(2)/2, ln(2)/2], within 0.06 ulp before rounding.
template <typename V>
SEGKERNELS_INLINE V exp_nonpositive(V x) {
  using U = typename IntegerOf<V>::bits;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const V shifted = x * 1.44269504f + 12582912.0f;
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const V rr = r * r;
  // Pairs first (Estrin): these functions wait for chains of operations more than for their number.
  const V low = r * 1.66665152e-1f + 4.9999994e-1f;
  const V high = rr * 1.38131448e-3f + (r * 8.36941879e-3f + 4.1668456e-2f);
  const V p = (high * rr + low) * rr + (r + 1.0f);
  const V result = bit_cast<V>(bit_cast<U>(p) + (bit_cast<U>(shifted) << 23));  // p * 2^n
  return x < -87.33f ? V{} : result;
}
SEGKERNELS_INLINE double exp_nonpositive(double x) {
  return std::exp(x);
}

// 2 atanh(s) for s in [0, 1/3] or close to 0, where 2s is given: minimax over s^2, within 0.04 ulp before rounding.
template <typename V>
SEGKERNELS_INLINE V twice_atanh(V s, V twice_s) {
  const V z = s * s;
  const V p = (z * 2.80119866e-1f + 2.80018061e-1f) * (z * z) + (z * 4.00215268e-1f + 6.66664183e-1f);
  return twice_s + (s * z) * p;
}

// log(1 + x) for 0 <= x <= 1, within 1.6 ulp.
template <typename V>
SEGKERNELS_INLINE V log1p_unit(V x) {
  const V s = x / (x + 2.0f);
  return twice_atanh(s, s + s);
}
SEGKERNELS_INLINE double log1p_unit(double x) {
  return std::log1p(x);
}

// log(x) for finite x >= 0, within 1.5 ulp; -inf at 0, NaN below.
template <typename V>
SEGKERNELS_INLINE V log_finite(V x) {
  using I = typename IntegerOf<V>::type;
  using U = typename IntegerOf<V>::bits;
  const V tiny = x < std::numeric_limits<float>::min() ? V{} + 23.0f : V{};  // subnormals are scaled by 2^23
  const U bits = bit_cast<U>(x < std::numeric_limits<float>::min() ? x * 8388608.0f : x);
  // Exponent for which the mantissa lies in [sqrt(1/2), sqrt(2)).
  const I exponent = bit_cast<I>(bits - 0x3f3504f3u) >> 23;
  const V m = bit_cast<V>(bits - (bit_cast<U>(exponent) << 23));
  V n;
  if constexpr (sizeof(V) == sizeof(float)) {
    n = static_cast<float>(exponent) - tiny;
  } else {
    n = __builtin_convertvector(exponent, V) - tiny;
  }
  const V s = (m - 1.0f) / (m + 1.0f);
  // n ln 2 in two parts: the first is exact.
  const V result = n * 0.693359375f + (twice_atanh(s, s + s) - n * 2.12194440e-4f);
  const V infinity = V{} + std::numeric_limits<float>::infinity();
  return x > 0.0f ? result : (x == 0.0f ? -infinity : x - x + std::numeric_limits<float>::quiet_NaN());
}
SEGKERNELS_INLINE double log_finite(double x) {
  return std::log(x);
}

// float16 and bfloat16, as bits, to float and back (round to nearest even). The conversions of c10 are branch-free too,
// but call the CPU's instruction only in files compiled for it.
SEGKERNELS_INLINE float half_bits_to_float(uint16_t half) {
  const int32_t magnitude = (half & 0x7fff) << 13;
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;  // the exponent's bias, exact for subnormals too
  const int32_t special = magnitude >= 0x0f800000 ? 0x7f800000 : 0;
  return bit_cast<float>(bit_cast<int32_t>(scaled) | special | (static_cast<int32_t>(half & 0x8000) << 16));
}

SEGKERNELS_INLINE uint16_t float_to_half_bits(float value) {
  const int32_t bits = bit_cast<int32_t>(value);
  const int32_t magnitude = bits & 0x7fffffff;
  const int32_t normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 lines the mantissa up with a subnormal half's, rounded.
  const int32_t subnormal = bit_cast<int32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  const int32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  const int32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  return static_cast<uint16_t>((magnitude >= 0x47800000 ? special : finite) | ((bits >> 16) & 0x8000));
}

SEGKERNELS_INLINE float bfloat16_bits_to_float(uint16_t value) {
  return bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

SEGKERNELS_INLINE uint16_t float_to_bfloat16_bits(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

}  // namespace segkernels
