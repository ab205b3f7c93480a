// Atomics: fibers do not run at the same time, so plain arithmetic is atomic. Before each one other threads may go
// first.
#pragma once

#include <type_traits>

#include "scheduler.h"

namespace segkernels::emulation {

// Stores f(old) and returns old.
template <typename T, typename F>
T atomic_update(T* address, F f, Site where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA has 32-bit and 64-bit atomics of these types");
  interleave(where);
  const T old = *address;
  *address = f(old);
  return old;
}

// Integer atomics wrap around.
template <typename T>
T wrapping_add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  } else {
    return a + b;
  }
}

}  // namespace segkernels::emulation

#define SEGKERNELS_ATOMIC(name, expression)                                                              \
  template <typename T>                                                                                  \
  T name(T* address, std::type_identity_t<T> value,                                                      \
         segkernels::emulation::Site where = segkernels::emulation::Site::current()) {                   \
    return segkernels::emulation::atomic_update(address, [&](T old) -> T { return expression; }, where); \
  }

SEGKERNELS_ATOMIC(atomicAdd, segkernels::emulation::wrapping_add<T>(old, value))
SEGKERNELS_ATOMIC(atomicSub, segkernels::emulation::wrapping_add<T>(old, T(0) - value))
SEGKERNELS_ATOMIC(atomicExch, (static_cast<void>(old), value))
SEGKERNELS_ATOMIC(atomicMin, value < old ? value : old)
SEGKERNELS_ATOMIC(atomicMax, old < value ? value : old)
SEGKERNELS_ATOMIC(atomicAnd, old& value)
SEGKERNELS_ATOMIC(atomicOr, old | value)
SEGKERNELS_ATOMIC(atomicXor, old ^ value)
SEGKERNELS_ATOMIC(atomicInc, old >= value ? T(0) : old + 1)
SEGKERNELS_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef SEGKERNELS_ATOMIC

template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value,
            segkernels::emulation::Site where = segkernels::emulation::Site::current()) {
  return segkernels::emulation::atomic_update(address, [&](T old) -> T { return old == compare ? value : old; }, where);
}
