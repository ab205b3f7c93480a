// Device functions that have no namesake in C++. The fast approximations are computed exactly: their error is the
// hardware's and shows on a GPU only.
#pragma once

#include <math.h>

#include <bit>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "scheduler.h"

template <typename T>
inline T __ldg(const T* pointer) {
  return *pointer;
}
template <typename T>
inline T __ldcs(const T* pointer) {
  return *pointer;
}
template <typename T>
inline void __stcs(T* pointer, T value) {
  *pointer = value;
}

#define SEGKERNELS_MIN_MAX(type)       \
  constexpr type min(type a, type b) { \
    return b < a ? b : a;              \
  }                                    \
  constexpr type max(type a, type b) { \
    return a < b ? b : a;              \
  }

SEGKERNELS_MIN_MAX(int)
SEGKERNELS_MIN_MAX(unsigned int)
SEGKERNELS_MIN_MAX(long)
SEGKERNELS_MIN_MAX(unsigned long)
SEGKERNELS_MIN_MAX(long long)
SEGKERNELS_MIN_MAX(unsigned long long)
#undef SEGKERNELS_MIN_MAX
// Of a number and NaN the number, as on the device.
inline float min(float a, float b) {
  return fminf(a, b);
}
inline float max(float a, float b) {
  return fmaxf(a, b);
}
inline double min(double a, double b) {
  return fmin(a, b);
}
inline double max(double a, double b) {
  return fmax(a, b);
}

inline float __expf(float x) {
  return expf(x);
}
inline float __exp10f(float x) {
  return powf(10.0f, x);
}
inline float __logf(float x) {
  return logf(x);
}
inline float __log2f(float x) {
  return log2f(x);
}
inline float __log10f(float x) {
  return log10f(x);
}
inline float __powf(float x, float y) {
  return powf(x, y);
}
inline float __sinf(float x) {
  return sinf(x);
}
inline float __cosf(float x) {
  return cosf(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float __frcp_rn(float x) {
  return 1.0f / x;
}
inline float __fsqrt_rn(float x) {
  return sqrtf(x);
}
inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1.0 / sqrt(x);
}
inline float __frsqrt_rn(float x) {
  return rsqrtf(x);
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __fsub_rn(float x, float y) {
  return x - y;
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline float __fdiv_rn(float x, float y) {
  return x / y;
}
inline double __dadd_rn(double x, double y) {
  return x + y;
}
inline double __dmul_rn(double x, double y) {
  return x * y;
}
inline float __fmaf_rn(float x, float y, float z) {
  return fmaf(x, y, z);
}
inline double __fma_rn(double x, double y, double z) {
  return fma(x, y, z);
}
// NaN becomes 0.
inline float __saturatef(float x) {
  return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}

namespace segkernels::emulation {

// Conversions to int saturate on the device and NaN becomes 0; in C++ both are undefined.
inline int saturated_int(float x) {
  return x != x ? 0 : x >= 2147483648.0f ? INT_MAX : x <= -2147483648.0f ? INT_MIN : static_cast<int>(x);
}

}  // namespace segkernels::emulation

inline int __float2int_rn(float x) {
  return segkernels::emulation::saturated_int(nearbyintf(x));
}
inline int __float2int_rd(float x) {
  return segkernels::emulation::saturated_int(floorf(x));
}
inline int __float2int_ru(float x) {
  return segkernels::emulation::saturated_int(ceilf(x));
}
inline int __float2int_rz(float x) {
  return segkernels::emulation::saturated_int(x);
}
inline float __int2float_rn(int x) {
  return static_cast<float>(x);
}
inline float __uint2float_rn(unsigned int x) {
  return static_cast<float>(x);
}

inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline unsigned int __float_as_uint(float x) {
  return std::bit_cast<unsigned int>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline float __uint_as_float(unsigned int x) {
  return std::bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
  return std::bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return std::bit_cast<double>(x);
}

inline int __popc(unsigned int x) {
  return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned int>(x));
}
inline int __clzll(long long x) {
  return std::countl_zero(static_cast<unsigned long long>(x));
}
// 1 + the lowest set bit; 0 for 0.
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline unsigned int __brev(unsigned int x) {
  unsigned int result = 0;
  for (int bit = 0; bit < 32; ++bit) {
    result |= (x >> bit & 1u) << (31 - bit);
  }
  return result;
}
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __mulhi(int a, int b) {
  return static_cast<int>(static_cast<int64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

inline void __trap(segkernels::emulation::Site where = segkernels::emulation::Site::current()) {
  segkernels::emulation::fail("__trap()", where);
}
