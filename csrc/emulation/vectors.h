// CUDA's vector types with their alignments, and dim3.
#pragma once

#define SEGKERNELS_VECTORS(base, scalar, align2, align4)                     \
  struct base##1 {                                                           \
    scalar x;                                                                \
  };                                                                         \
  struct alignas(align2) base##2 {                                           \
    scalar x, y;                                                             \
  };                                                                         \
  struct base##3 {                                                           \
    scalar x, y, z;                                                          \
  };                                                                         \
  struct alignas(align4) base##4 {                                           \
    scalar x, y, z, w;                                                       \
  };                                                                         \
  constexpr base##1 make_##base##1(scalar x) {                               \
    return {x};                                                              \
  }                                                                          \
  constexpr base##2 make_##base##2(scalar x, scalar y) {                     \
    return {x, y};                                                           \
  }                                                                          \
  constexpr base##3 make_##base##3(scalar x, scalar y, scalar z) {           \
    return {x, y, z};                                                        \
  }                                                                          \
  constexpr base##4 make_##base##4(scalar x, scalar y, scalar z, scalar w) { \
    return {x, y, z, w};                                                     \
  }

SEGKERNELS_VECTORS(char, signed char, 2, 4)
SEGKERNELS_VECTORS(uchar, unsigned char, 2, 4)
SEGKERNELS_VECTORS(short, short, 4, 8)
SEGKERNELS_VECTORS(ushort, unsigned short, 4, 8)
SEGKERNELS_VECTORS(int, int, 8, 16)
SEGKERNELS_VECTORS(uint, unsigned int, 8, 16)
SEGKERNELS_VECTORS(float, float, 8, 16)
#undef SEGKERNELS_VECTORS

#define SEGKERNELS_VECTOR2(base, scalar)                 \
  struct alignas(16) base##2 {                           \
    scalar x, y;                                         \
  };                                                     \
  constexpr base##2 make_##base##2(scalar x, scalar y) { \
    return {x, y};                                       \
  }

SEGKERNELS_VECTOR2(longlong, long long)
SEGKERNELS_VECTOR2(ulonglong, unsigned long long)
SEGKERNELS_VECTOR2(double, double)
#undef SEGKERNELS_VECTOR2

struct dim3 {
  unsigned int x = 1, y = 1, z = 1;
  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
