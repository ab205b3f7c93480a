// The gradient of a depthwise convolution's weight and bias: input and gradient are read once, and all taps of a
// channel are summed side by side.
#pragma once

#include <vector>

#include "conv2d_depthwise.h"

namespace segkernels {

// sums[t] += source[t] * grad over a row, for kTaps taps. The last vector is cut: what stands behind the row may be
// infinite.
template <int kTaps, typename acc_t>
SEGKERNELS_INLINE void depthwise_weight_taps(const acc_t* const* sources, const acc_t* grad, int64_t columns,
                                             acc_t* sums) {
  using V = typename DepthwiseVector<acc_t>::type;
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  V total[kTaps];
  for (int t = 0; t < kTaps; ++t) {
    total[t] = load_vector<V>(sums + t * kStep);
  }
  int64_t x = 0;
  for (; x + kStep <= columns; x += kStep) {
    const V g = load_vector<V>(grad + x);
    for (int t = 0; t < kTaps; ++t) {
      total[t] += g * load_vector<V>(sources[t] + x);
    }
  }
  if (x < columns) {
    using I = decltype(V{} < V{});
    I inside;
    for (int64_t i = 0; i < kStep; ++i) {
      inside[i] = x + i < columns ? -1 : 0;
    }
    const V g = load_vector<V>(grad + x);
    for (int t = 0; t < kTaps; ++t) {
      total[t] += inside ? g * load_vector<V>(sources[t] + x) : V{};
    }
  }
  for (int t = 0; t < kTaps; ++t) {
    store_vector(sums + t * kStep, total[t]);
  }
}

// NCHW: `sums` has a vector for every tap.
template <typename acc_t>
SEGKERNELS_CLONES void depthwise_weight_row(const acc_t* const* sources, int64_t count, const acc_t* grad,
                                            int64_t columns, acc_t* sums) {
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  int64_t t = 0;
  for (; t + 9 <= count; t += 9) {
    depthwise_weight_taps<9>(sources + t, grad, columns, sums + t * kStep);
  }
  for (; t + 4 <= count; t += 4) {
    depthwise_weight_taps<4>(sources + t, grad, columns, sums + t * kStep);
  }
  for (; t < count; ++t) {
    depthwise_weight_taps<1>(sources + t, grad, columns, sums + t * kStep);
  }
}

// channels_last, kTaps taps of kDepthwiseLanes channels.
template <int kTaps, typename acc_t>
SEGKERNELS_INLINE void depthwise_weight_pixels(const acc_t* const* sources, const acc_t* grad, int64_t pixels,
                                               acc_t* sums) {
  using V = typename DepthwiseVector<acc_t>::type;
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  for (int64_t c = 0; c < kDepthwiseLanes; c += 2 * kStep) {
    V low[kTaps], high[kTaps];
    for (int t = 0; t < kTaps; ++t) {
      low[t] = load_vector<V>(sums + t * kDepthwiseLanes + c);
      high[t] = load_vector<V>(sums + t * kDepthwiseLanes + c + kStep);
    }
    for (int64_t x = 0; x < pixels; ++x) {
      const int64_t at = x * kDepthwiseLanes + c;
      const V a = load_vector<V>(grad + at);
      const V b = load_vector<V>(grad + at + kStep);
      for (int t = 0; t < kTaps; ++t) {
        low[t] += a * load_vector<V>(sources[t] + at);
        high[t] += b * load_vector<V>(sources[t] + at + kStep);
      }
    }
    for (int t = 0; t < kTaps; ++t) {
      store_vector(sums + t * kDepthwiseLanes + c, low[t]);
      store_vector(sums + t * kDepthwiseLanes + c + kStep, high[t]);
    }
  }
}

template <typename acc_t>
SEGKERNELS_CLONES void depthwise_weight_row_channels(const acc_t* const* sources, int64_t count, const acc_t* grad,
                                                     int64_t pixels, acc_t* sums) {
  int64_t t = 0;
  for (; t + 5 <= count; t += 5) {
    depthwise_weight_pixels<5>(sources + t, grad, pixels, sums + t * kDepthwiseLanes);
  }
  for (; t + 3 <= count; t += 3) {
    depthwise_weight_pixels<3>(sources + t, grad, pixels, sums + t * kDepthwiseLanes);
  }
  for (; t < count; ++t) {
    depthwise_weight_pixels<1>(sources + t, grad, pixels, sums + t * kDepthwiseLanes);
  }
}

template <typename acc_t, int kLanes>
struct DepthwiseWeightGradient {
  // What one tap sums into: a vector's lanes (NCHW), the block's channels (channels_last).
  static constexpr int64_t kWidth = kLanes == 1 ? DepthwiseVector<acc_t>::count : kLanes;

  const Conv2dParams& p;
  DepthwiseAxis rows;
  DepthwiseColumns columns, grad_columns;
  DepthwiseLayout<kLanes> input, grad;

  explicit DepthwiseWeightGradient(const Conv2dParams& p)
      : p(p),
        rows{p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, false},
        columns(DepthwiseAxis{p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, false}),
        grad_columns(DepthwiseAxis{p.out_w, p.out_w, 1, 1, 0, 1, false}),
        input{p.groups, 1, p.in_h, p.in_w},
        grad{p.groups, p.multiplier(), p.out_h, p.out_w} {}

  // Images are summed apart where channels are too few to share out; the number of parts is the shape's alone.
  int64_t parts() const {
    constexpr int64_t kUnits = 16;
    return std::clamp<int64_t>((kUnits + input.blocks() - 1) / input.blocks(), 1, p.batch);
  }

  // [Cout, KH, KW] and [Cout]; either may be null.
  void run(const DepthwiseSource<acc_t>& x, const DepthwiseSource<acc_t>& g, acc_t* grad_weight,
           acc_t* grad_bias) const {
    const int64_t count = p.taps() + 1;  // the last one sums the gradient alone, for the bias
    const int64_t part_count = parts();
    const int64_t blocks = input.blocks();
    std::vector<double> sums(part_count * blocks * kLanes * p.multiplier() * count);
    const int64_t cost = p.batch * (p.in_h * p.in_w + p.multiplier() * p.out_h * p.out_w) * kLanes / part_count;
    parallel_items(blocks * part_count, cost, [&](int64_t begin, int64_t end) {
      DepthwiseRing<acc_t, kLanes> ring(x, rows.reach(), columns);
      DepthwiseRing<acc_t, kLanes> grad_row(g, 1, grad_columns);
      const std::vector<acc_t> ones(columns.row_length() * kLanes, acc_t(1));
      std::vector<acc_t> totals(p.multiplier() * count * kWidth);
      std::vector<const acc_t*> sources(count);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t block = unit % blocks;
        const int64_t part = unit / blocks;
        double* to = sums.data() + unit * kLanes * p.multiplier() * count;
        for (int64_t n = part * p.batch / part_count; n < (part + 1) * p.batch / part_count; ++n) {
          ring.start(input.start(n, block, 0), input.strides(block));
          std::fill(totals.begin(), totals.end(), acc_t(0));
          for (int64_t y = 0; y < p.out_h; ++y) {
            row(ring, grad_row, ones.data(), sources, grad_weight != nullptr, n, block, y, totals);
          }
          add(totals, to);
        }
      }
    });
    for (int64_t channel = 0; channel < p.out_channels; ++channel) {
      const int64_t group = channel / p.multiplier();
      const int64_t q = channel % p.multiplier();
      for (int64_t t = 0; t < count; ++t) {
        double sum = 0;
        for (int64_t part = 0; part < part_count; ++part) {
          const int64_t unit = part * blocks + group / kLanes;
          sum += sums[((unit * p.multiplier() + q) * count + t) * kLanes + group % kLanes];
        }
        if (t < p.taps() && grad_weight) {
          grad_weight[channel * p.taps() + t] = static_cast<acc_t>(sum);
        } else if (t == p.taps() && grad_bias) {
          grad_bias[channel] = static_cast<acc_t>(sum);
        }
      }
    }
  }

  void row(DepthwiseRing<acc_t, kLanes>& ring, DepthwiseRing<acc_t, kLanes>& grad_row, const acc_t* ones,
           std::vector<const acc_t*>& sources, bool need_weight, int64_t n, int64_t block, int64_t y,
           std::vector<acc_t>& totals) const {
    const int64_t count = p.taps() + 1;
    // Taps that are valid for this row are neighbours: the rows outside are at the kernel's ends.
    int64_t first = p.taps(), last = p.taps();
    for (int64_t i = 0; i < p.kernel_h && need_weight; ++i) {
      const int64_t at = rows.feed(y, i);
      if (at < 0) {
        continue;
      }
      if (first == p.taps()) {
        first = i * p.kernel_w;
      }
      last = (i + 1) * p.kernel_w;
      const acc_t* values = ring.row(at);
      for (const DepthwiseColumns::Tap& tap : columns.taps[0]) {
        sources[i * p.kernel_w + tap.tap] = values + tap.offset * kLanes;
      }
    }
    for (int64_t q = 0; q < p.multiplier(); ++q) {
      grad_row.start(grad.start(n, block, q), grad.strides(block));
      const acc_t* values = grad_row.row(y);
      acc_t* sums = totals.data() + q * count * kWidth;
      const auto sum = [&](const acc_t* const* from, int64_t tap, int64_t taps) {
        if constexpr (kLanes == 1) {
          depthwise_weight_row(from, taps, values, p.out_w, sums + tap * kWidth);
        } else {
          depthwise_weight_row_channels(from, taps, values, p.out_w, sums + tap * kWidth);
        }
      };
      sum(sources.data() + first, first, last - first);
      sum(&ones, p.taps(), 1);
    }
  }

  // to [multiplier, taps + 1, lanes] += totals.
  void add(const std::vector<acc_t>& totals, double* to) const {
    for (int64_t i = 0; i < p.multiplier() * (p.taps() + 1); ++i) {
      for (int64_t lane = 0; lane < kWidth; ++lane) {
        to[i * kLanes + (kLanes == 1 ? 0 : lane)] += totals[i * kWidth + lane];
      }
    }
  }
};

}  // namespace segkernels
