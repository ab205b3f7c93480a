// Portable SIMD: loops and GCC vector types, compiled once per instruction set and chosen when the library loads.
#pragma once

// A function marked SEGKERNELS_CLONES exists for AVX-512, AVX2 and the baseline; the loader picks by the machine's CPU,
// so a library built on one machine is fast and safe on another. What it calls must be inlined into it
// (SEGKERNELS_INLINE, lambdas too): only code inside the clone gets the clone's instructions. Sanitizer builds turn
// clones off, because their resolvers run before the sanitizer's runtime exists.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(SEGKERNELS_NO_CLONES)
#define SEGKERNELS_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SEGKERNELS_CLONES
#endif

#if defined(__GNUC__)
#define SEGKERNELS_INLINE inline __attribute__((always_inline))
#define SEGKERNELS_INLINE_LAMBDA __attribute__((always_inline))
#else
#define SEGKERNELS_INLINE inline
#define SEGKERNELS_INLINE_LAMBDA
#endif
