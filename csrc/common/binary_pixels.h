// The per-pixel maths of losses on sigmoid probabilities, for float, double and f32x8.
#pragma once

#include "vecmath.h"

namespace segkernels {

// What one pixel contributes, in two steps that are two loops over a block: each is short enough for the CPU to have
// several iterations in flight. `weighted` is pos_weight * t.
struct FromLogits {
  static constexpr float kNeutral = -1e30f;

  template <typename V>
  static SEGKERNELS_INLINE V prepare(V x) {
    return exp_nonpositive(negative_abs(x));
  }

  // Stable for any logit: softplus(x) = max(x, 0) + log(1 + exp(-|x|)).
  template <typename V>
  static SEGKERNELS_INLINE void loss(V x, V e, V t, V weighted, V& p, V& bce) {
    const V r = 1 / (1 + e);
    const V rest = 1 - t;
    p = x < V{} ? e * r : r;
    bce = log1p_unit(e) * (rest + weighted) + (x > V{} ? rest * x : -weighted * x);
  }

  // p, dp/dx and dbce/dx; 1 - p is computed without cancellation.
  template <typename V>
  static SEGKERNELS_INLINE void slopes(V x, V e, V t, V weighted, V& p, V& dp, V& dbce) {
    const V r = 1 / (1 + e);
    const V er = e * r;
    p = x < V{} ? er : r;
    const V q = x < V{} ? r : er;
    dp = er * r;
    dbce = (1 - t) * p - weighted * q;
  }
};

// Probabilities, with the limits of torch.nn.functional.binary_cross_entropy: logarithms of at least -100 forward,
// p(1 - p) of at least 1e-12 backward.
struct FromProbabilities {
  static constexpr float kNeutral = 0;

  template <typename V>
  static SEGKERNELS_INLINE V limited_log(V x) {
    const V value = log_finite(x);
    return value < -100 ? V{} - 100 : value;
  }

  // 1 - p
  template <typename V>
  static SEGKERNELS_INLINE V prepare(V x) {
    return 1 - x;
  }

  template <typename V>
  static SEGKERNELS_INLINE void loss(V x, V q, V t, V weighted, V& p, V& bce) {
    p = x;
    bce = (t - 1) * limited_log(q) - weighted * limited_log(x);
  }

  template <typename V>
  static SEGKERNELS_INLINE void slopes(V x, V q, V t, V weighted, V& p, V& dp, V& dbce) {
    p = x;
    dp = V{} + 1;
    const V spread = x * q;
    dbce = ((1 - t) * x - weighted * q) / (spread < 1e-12f ? V{} + 1e-12f : spread);
  }
};

}  // namespace segkernels
