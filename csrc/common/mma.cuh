// Tensor-core tiles of one warp, with two bodies: the instruction, and under csrc/emulation a scalar reference of the
// same tile. All 32 lanes take part. With group = lane / 4 and pair = lane % 4, a lane holds of D = A B + C
//
//   16x8 accumulator   c[0..1]: row group, columns 2 pair and 2 pair + 1;  c[2..3]: row group + 8
//   16x16 half A       a[i]: row group + 8 (i % 2), columns 2 pair + 8 (i / 2) and the next, lower column in the low
//   half 16x8 half B        b[i]: rows 2 pair + 8 i and the next, lower row in the low half, column group 16x8 tf32 A
//   a[i]: row group + 8 (i % 2), column pair + 4 (i / 2) 8x8 tf32 B         b[i]: row pair + 4 i, column group
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "dispatch.h"

namespace segkernels {

#if defined(SEGKERNELS_EMULATION)
namespace emulation {

struct MmaLane {
  const uint32_t* a;
  const uint32_t* b;
  float* c;
};

template <typename T>
float half_of(uint32_t word, int upper) {
  return static_cast<float>(T(static_cast<uint16_t>(word >> (16 * upper)), T::from_bits()));
}

// The tile from every lane's registers, products in ascending order of k; the hardware's order and rounding of the sum
// are its own.
template <int kDepth, typename A, typename B>
void resolve_mma(void* const* slots, A at_a, B at_b) {
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 8; ++col) {
      float& c = static_cast<MmaLane*>(slots[row % 8 * 4 + col / 2])->c[row / 8 * 2 + col % 2];
      for (int k = 0; k < kDepth; ++k) {
        c += at_a(row, k) * at_b(k, col);
      }
    }
  }
}

inline const MmaLane& mma_lane(void* const* slots, int lane) {
  return *static_cast<MmaLane*>(slots[lane]);
}

template <typename T>
void resolve_mma_half(void* const* slots, uint32_t, Site) {
  resolve_mma<16>(
      slots,
      [&](int row, int k) {
        return half_of<T>(mma_lane(slots, row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2], k % 2);
      },
      [&](int k, int col) { return half_of<T>(mma_lane(slots, col * 4 + k % 8 / 2).b[k / 8], k % 2); });
}

// The instruction reads the upper 19 bits.
inline float tf32_of(uint32_t word) {
  return __uint_as_float(word & ~0x1fffu);
}

inline void resolve_mma_tf32(void* const* slots, uint32_t, Site) {
  resolve_mma<8>(
      slots, [&](int row, int k) { return tf32_of(mma_lane(slots, row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2]); },
      [&](int k, int col) { return tf32_of(mma_lane(slots, col * 4 + k % 4).b[k / 4]); });
}

struct MatrixLane {
  const unsigned char* row;
  uint32_t* words;
};

// Lane 8 m + r brings the address of row r of matrix m.
template <bool kTranspose>
void resolve_load_matrix(void* const* slots, uint32_t, Site where) {
  for (int lane = 0; lane < 32; ++lane) {
    if (reinterpret_cast<uintptr_t>(static_cast<MatrixLane*>(slots[lane])->row) % 16 != 0) {
      fail("ldmatrix: misaligned row", where);
    }
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const int row = kTranspose ? lane % 4 * 2 + i : lane / 4;
        const int col = kTranspose ? lane / 4 : lane % 4 * 2 + i;
        memcpy(&pair[i], static_cast<MatrixLane*>(slots[matrix * 8 + row])->row + 2 * col, 2);
      }
      static_cast<MatrixLane*>(slots[lane])->words[matrix] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
  }
}

}  // namespace emulation
#endif

// c += a b with T = half or bfloat16 and float32 sums.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, half> || std::is_same_v<T, bfloat16>);
#if defined(SEGKERNELS_EMULATION)
  emulation::MmaLane lane{a, b, c};
  emulation::warp_collective("mma.m16n8k16", 0xffffffffu, &lane, emulation::resolve_mma_half<T>,
                             emulation::Site::current());
#else
  if constexpr (std::is_same_v<T, half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// c += a b with operands from to_tf32.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(SEGKERNELS_EMULATION)
  emulation::MmaLane lane{a, b, c};
  emulation::warp_collective("mma.m16n8k8.tf32", 0xffffffffu, &lane, emulation::resolve_mma_tf32,
                             emulation::Site::current());
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The nearest tf32 number, ties away from zero, as the bits of a float32.
__device__ __forceinline__ uint32_t to_tf32(float value) {
#if defined(SEGKERNELS_EMULATION)
  const uint32_t bits = __float_as_uint(value);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? (bits + 0x1000u) & ~0x1fffu : bits;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
#endif
}

// Four 8x8 matrices of 16-bit elements from shared memory in the layout of the operands above: lane 8 m + r passes the
// 16-byte aligned address of row r of matrix m, and words[m] is its pair of elements. kTranspose transposes each
// matrix.
template <bool kTranspose = false>
__device__ __forceinline__ void load_matrix_x4(uint32_t (&words)[4], const void* row) {
#if defined(SEGKERNELS_EMULATION)
  emulation::MatrixLane lane{static_cast<const unsigned char*>(row), words};
  emulation::warp_collective("ldmatrix", 0xffffffffu, &lane, emulation::resolve_load_matrix<kTranspose>,
                             emulation::Site::current());
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTranspose) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  }
#endif
}

}  // namespace segkernels
