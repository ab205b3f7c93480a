// Barriers, shuffles, votes and reductions of a warp, with CUDA's names and the place of the call for error messages.
#pragma once

#include <bit>
#include <cstdint>
#include <string>
#include <type_traits>

#include "scheduler.h"

namespace segkernels::emulation {

// What a lane brings to a warp operation, and what it takes away.
template <typename T>
struct Lane {
  T value;
  int from;  // lane whose value it wants, or -1
};

template <typename T>
void resolve_shuffle(void* const* slots, uint32_t lanes, Site where) {
  T values[kWarpSize] = {};
  for (unsigned int lane = 0; lane < kWarpSize; ++lane) {
    if (slots[lane] != nullptr) {
      values[lane] = static_cast<Lane<T>*>(slots[lane])->value;
    }
  }
  for (unsigned int lane = 0; lane < kWarpSize; ++lane) {
    if (slots[lane] == nullptr) {
      continue;
    }
    Lane<T>& self = *static_cast<Lane<T>*>(slots[lane]);
    if ((lanes >> self.from & 1) == 0) {
      fail("shuffle: lane " + std::to_string(lane) + " reads lane " + std::to_string(self.from) +
               ", which takes no part in it,",
           where);
    }
    self.value = values[self.from];
  }
}

// `from` picks the source inside the lane's group of `width`; outside the group a lane keeps its own value.
template <typename T, typename F>
T shuffle(const char* name, uint32_t mask, T value, int width, F from, Site where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2));
  if (width <= 0 || width > static_cast<int>(kWarpSize) || (width & (width - 1)) != 0) {
    fail("shuffle: width " + std::to_string(width) + " is no power of two up to 32,", where);
  }
  const int self = static_cast<int>(lane_id());
  const int first = self / width * width;
  const int source = from(self, first);
  const bool inside = source >= first && source < first + width;
  Lane<T> lane{value, inside ? source : self};
  warp_collective(name, mask, &lane, resolve_shuffle<T>, where);
  return lane.value;
}

// One result for all lanes, from all values.
template <typename T, T (*kCombine)(T, T)>
void resolve_reduce(void* const* slots, uint32_t, Site) {
  bool any = false;
  T result{};
  for (unsigned int lane = 0; lane < kWarpSize; ++lane) {
    if (slots[lane] != nullptr) {
      const T value = *static_cast<T*>(slots[lane]);
      result = any ? kCombine(result, value) : value;
      any = true;
    }
  }
  for (unsigned int lane = 0; lane < kWarpSize; ++lane) {
    if (slots[lane] != nullptr) {
      *static_cast<T*>(slots[lane]) = result;
    }
  }
}

template <typename T, T (*kCombine)(T, T)>
T reduce(const char* name, uint32_t mask, T value, Site where) {
  warp_collective(name, mask, &value, resolve_reduce<T, kCombine>, where);
  return value;
}

template <typename T>
T wrapping_sum(T a, T b) {
  return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
template <typename T>
T smaller(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T larger(T a, T b) {
  return a < b ? b : a;
}
template <typename T>
T bit_and(T a, T b) {
  return a & b;
}
template <typename T>
T bit_or(T a, T b) {
  return a | b;
}
template <typename T>
T bit_xor(T a, T b) {
  return a ^ b;
}

template <typename T>
void resolve_match(void* const* slots, uint32_t, Site) {
  uint32_t masks[kWarpSize] = {};
  for (unsigned int i = 0; i < kWarpSize; ++i) {
    for (unsigned int j = 0; j < kWarpSize && slots[i] != nullptr; ++j) {
      const bool equal =
          slots[j] != nullptr && static_cast<Lane<T>*>(slots[i])->value == static_cast<Lane<T>*>(slots[j])->value;
      masks[i] |= equal ? 1u << j : 0u;
    }
  }
  for (unsigned int i = 0; i < kWarpSize; ++i) {
    if (slots[i] != nullptr) {
      static_cast<Lane<T>*>(slots[i])->from = std::bit_cast<int>(masks[i]);
    }
  }
}

}  // namespace segkernels::emulation

#define SEGKERNELS_SITE segkernels::emulation::Site where = segkernels::emulation::Site::current()

inline void __syncthreads(SEGKERNELS_SITE) {
  segkernels::emulation::block_barrier(segkernels::emulation::Barrier::sync, false, where);
}
inline int __syncthreads_count(int predicate, SEGKERNELS_SITE) {
  return segkernels::emulation::block_barrier(segkernels::emulation::Barrier::count, predicate != 0, where);
}
inline int __syncthreads_and(int predicate, SEGKERNELS_SITE) {
  return segkernels::emulation::block_barrier(segkernels::emulation::Barrier::all, predicate != 0, where);
}
inline int __syncthreads_or(int predicate, SEGKERNELS_SITE) {
  return segkernels::emulation::block_barrier(segkernels::emulation::Barrier::any, predicate != 0, where);
}
inline void __syncwarp(unsigned int mask = 0xffffffffu, SEGKERNELS_SITE) {
  segkernels::emulation::warp_collective("__syncwarp", mask, nullptr, nullptr, where);
}
// Fibers see each other's writes at once.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

inline unsigned int __activemask(SEGKERNELS_SITE) {
  return segkernels::emulation::active_lanes(where);
}

template <typename T>
T __shfl_sync(unsigned int mask, T value, int source, int width = warpSize, SEGKERNELS_SITE) {
  return segkernels::emulation::shuffle(
      "__shfl_sync", mask, value, width, [=](int, int first) { return first + (source & (width - 1)); }, where);
}
template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize, SEGKERNELS_SITE) {
  return segkernels::emulation::shuffle(
      "__shfl_up_sync", mask, value, width, [=](int self, int) { return self - static_cast<int>(delta); }, where);
}
template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize, SEGKERNELS_SITE) {
  return segkernels::emulation::shuffle(
      "__shfl_down_sync", mask, value, width, [=](int self, int) { return self + static_cast<int>(delta); }, where);
}
template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int lanes, int width = warpSize, SEGKERNELS_SITE) {
  return segkernels::emulation::shuffle(
      "__shfl_xor_sync", mask, value, width, [=](int self, int) { return self ^ lanes; }, where);
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, SEGKERNELS_SITE) {
  const uint32_t bit = predicate != 0 ? 1u << segkernels::emulation::lane_id() : 0u;
  return segkernels::emulation::reduce<uint32_t, segkernels::emulation::bit_or>("__ballot_sync", mask, bit, where);
}
inline int __any_sync(unsigned int mask, int predicate, SEGKERNELS_SITE) {
  return segkernels::emulation::reduce<int, segkernels::emulation::bit_or>("__any_sync", mask, predicate != 0, where);
}
inline int __all_sync(unsigned int mask, int predicate, SEGKERNELS_SITE) {
  return segkernels::emulation::reduce<int, segkernels::emulation::bit_and>("__all_sync", mask, predicate != 0, where);
}
template <typename T>
unsigned int __match_any_sync(unsigned int mask, T value, SEGKERNELS_SITE) {
  segkernels::emulation::Lane<T> lane{value, 0};
  segkernels::emulation::warp_collective("__match_any_sync", mask, &lane, segkernels::emulation::resolve_match<T>,
                                         where);
  return static_cast<unsigned int>(lane.from);
}

#define SEGKERNELS_REDUCE(name, combine, type)                                                             \
  inline type name(unsigned int mask, type value, SEGKERNELS_SITE) {                                       \
    return segkernels::emulation::reduce<type, segkernels::emulation::combine>(#name, mask, value, where); \
  }

SEGKERNELS_REDUCE(__reduce_add_sync, wrapping_sum, int)
SEGKERNELS_REDUCE(__reduce_add_sync, wrapping_sum, unsigned int)
SEGKERNELS_REDUCE(__reduce_min_sync, smaller, int)
SEGKERNELS_REDUCE(__reduce_min_sync, smaller, unsigned int)
SEGKERNELS_REDUCE(__reduce_max_sync, larger, int)
SEGKERNELS_REDUCE(__reduce_max_sync, larger, unsigned int)
SEGKERNELS_REDUCE(__reduce_and_sync, bit_and, unsigned int)
SEGKERNELS_REDUCE(__reduce_or_sync, bit_or, unsigned int)
SEGKERNELS_REDUCE(__reduce_xor_sync, bit_xor, unsigned int)
#undef SEGKERNELS_REDUCE
#undef SEGKERNELS_SITE
