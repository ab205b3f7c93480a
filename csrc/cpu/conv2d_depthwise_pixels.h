// Depthwise convolution in channels_last, straight from the input to the output: neighbouring pixels whose windows lose
// the same taps to the border are summed side by side, so that no tap looks at a border and nothing is copied.
#pragma once

#include <vector>

#include "../common/conv2d.h"
#include "../common/depthwise_conv2d.h"
#include "../common/parallel.h"

namespace segkernels {

// Columns [begin, end) of the output, whose windows have the columns [first, last) of the kernel inside of the input.
struct DepthwiseSpan {
  int64_t begin, end, first, last;
};

// What a tap reads, from its pixel's own place in the source on, and its weights.
template <typename acc_t>
struct DepthwisePixelTap {
  int64_t offset;
  const acc_t* weight;  // [channels]
};

// Channels that are summed in registers: two vectors.
template <typename acc_t>
constexpr int64_t kPixelBlock = 2 * DepthwiseVector<acc_t>::count;

// kPixels results, `step` apart in the source. The last channels overlap those before.
template <int kPixels, typename acc_t>
SEGKERNELS_INLINE void depthwise_pixel_group(const DepthwisePixelTap<acc_t>* taps, int64_t count, const acc_t* from,
                                             int64_t step, int64_t channels, const acc_t* bias, acc_t* to) {
  using V = typename DepthwiseVector<acc_t>::type;
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  for (int64_t block = 0; block < channels; block += kPixelBlock<acc_t>) {
    const int64_t c = std::min(block, channels - kPixelBlock<acc_t>);
    V low[kPixels], high[kPixels];
#pragma GCC unroll 6
    for (int p = 0; p < kPixels; ++p) {
      low[p] = bias ? load_vector<V>(bias + c) : V{};
      high[p] = bias ? load_vector<V>(bias + c + kStep) : V{};
    }
    for (int64_t t = 0; t < count; ++t) {
      const acc_t* source = from + taps[t].offset + c;
      const V a = load_vector<V>(taps[t].weight + c);
      const V b = load_vector<V>(taps[t].weight + c + kStep);
#pragma GCC unroll 6
      for (int p = 0; p < kPixels; ++p) {
        low[p] += a * load_vector<V>(source + p * step);
        high[p] += b * load_vector<V>(source + p * step + kStep);
      }
    }
#pragma GCC unroll 6
    for (int p = 0; p < kPixels; ++p) {
      store_vector(to + p * channels + c, low[p]);
      store_vector(to + p * channels + c + kStep, high[p]);
    }
  }
}

// The rows that the next row of results will read and write: the memory works while these sums are computed.
struct DepthwiseNextRow {
  const char* source;
  const char* to;
  int64_t step, to_step;  // bytes of a result
};

SEGKERNELS_INLINE void prefetch_far(const char* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) {
    __builtin_prefetch(from + at, 0, 2);
  }
}

// `pixels` neighbouring results, kMost at a time; the last ones overlap those before where there are enough.
template <int kMost, typename acc_t>
SEGKERNELS_INLINE void depthwise_pixel_groups(const DepthwisePixelTap<acc_t>* taps, int64_t count, const acc_t* from,
                                              int64_t step, int64_t pixels, int64_t channels, const acc_t* bias,
                                              acc_t* to, const DepthwiseNextRow& next) {
  int64_t x = 0;
  for (; pixels >= kMost && x < pixels; x += kMost) {
    const int64_t at = std::min(x, pixels - kMost);
    prefetch_far(next.source + at * next.step, kMost * next.step);
    prefetch_far(next.to + at * next.to_step, kMost * next.to_step);
    depthwise_pixel_group<kMost>(taps, count, from + at * step, step, channels, bias, to + at * channels);
  }
  for (; x < pixels; ++x) {
    depthwise_pixel_group<1>(taps, count, from + x * step, step, channels, bias, to + x * channels);
  }
}

// Few taps read the memory almost in order, which it likes; many taps are worth all registers, 12 sums and 2 weights.
template <typename acc_t>
SEGKERNELS_CLONES void depthwise_pixel_run(const DepthwisePixelTap<acc_t>* taps, int64_t count, const acc_t* from,
                                           int64_t step, int64_t pixels, int64_t channels, const acc_t* bias, acc_t* to,
                                           const DepthwiseNextRow& next) {
  if (count <= 9) {
    depthwise_pixel_groups<3>(taps, count, from, step, pixels, channels, bias, to, next);
  } else {
    depthwise_pixel_groups<6>(taps, count, from, step, pixels, channels, bias, to, next);
  }
}

// sums[t] += the source's pixels times the gradient's, for kTaps taps; sums are [kTaps][channels].
template <int kTaps, typename acc_t>
SEGKERNELS_INLINE void depthwise_weight_group(const int64_t* offsets, const acc_t* from, int64_t step,
                                              const acc_t* grad, int64_t pixels, int64_t channels, acc_t* const* sums) {
  using V = typename DepthwiseVector<acc_t>::type;
  constexpr int64_t kStep = DepthwiseVector<acc_t>::count;
  for (int64_t c = 0; c + kStep <= channels; c += kStep) {
    V total[kTaps];
    for (int t = 0; t < kTaps; ++t) {
      total[t] = load_vector<V>(sums[t] + c);
    }
    const acc_t* at = from + c;
    const acc_t* g = grad + c;
    for (int64_t p = 0; p < pixels; ++p, at += step, g += channels) {
      const V upstream = load_vector<V>(g);
      for (int t = 0; t < kTaps; ++t) {
        total[t] += upstream * load_vector<V>(at + offsets[t]);
      }
    }
    for (int t = 0; t < kTaps; ++t) {
      store_vector(sums[t] + c, total[t]);
    }
  }
  for (int64_t c = channels / kStep * kStep; c < channels; ++c) {
    for (int t = 0; t < kTaps; ++t) {
      for (int64_t p = 0; p < pixels; ++p) {
        sums[t][c] += grad[p * channels + c] * from[p * step + c + offsets[t]];
      }
    }
  }
}

// The same for `count` taps; few pixels at a time, so that those stay in L1 while all taps pass.
template <typename acc_t>
SEGKERNELS_CLONES void depthwise_weight_run(const int64_t* offsets, int64_t count, const acc_t* from, int64_t step,
                                            const acc_t* grad, int64_t pixels, int64_t channels, acc_t* const* sums) {
  constexpr int64_t kGroup = 16;
  for (int64_t x = 0; x < pixels; x += kGroup) {
    const int64_t group = std::min(kGroup, pixels - x);
    const acc_t* source = from + x * step;
    const acc_t* g = grad + x * channels;
    int64_t t = 0;
    for (; t + 9 <= count; t += 9) {
      depthwise_weight_group<9>(offsets + t, source, step, g, group, channels, sums + t);
    }
    for (; t + 3 <= count; t += 3) {
      depthwise_weight_group<3>(offsets + t, source, step, g, group, channels, sums + t);
    }
    for (; t < count; ++t) {
      depthwise_weight_group<1>(offsets + t, source, step, g, group, channels, sums + t);
    }
  }
}

template <typename acc_t>
SEGKERNELS_CLONES void add_and_clear(acc_t* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] += from[i];
    from[i] = 0;
  }
}

template <typename acc_t>
SEGKERNELS_CLONES void add_pixels(const acc_t* from, int64_t pixels, int64_t channels, acc_t* to) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      to[c] += from[p * channels + c];
    }
  }
}

template <typename acc_t>
struct DepthwisePixels {
  Conv2dParams p;

  // Wide kernels lose other taps at every pixel of the border; the padded rows of conv2d_depthwise.h suit them.
  static bool fits(const Conv2dParams& p) {
    constexpr int64_t kWidest = 9;
    return p.multiplier() == 1 && p.in_channels >= kPixelBlock<acc_t> && p.kernel_w <= kWidest;
  }

  std::vector<DepthwiseSpan> spans() const {
    const DepthwiseAxis columns{p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, false};
    std::vector<DepthwiseSpan> found;
    for (int64_t x = 0; x < p.out_w; ++x) {
      int64_t first = 0, last = p.kernel_w;
      while (first < last && columns.feed(x, first) < 0) {
        ++first;
      }
      while (last > first && columns.feed(x, last - 1) < 0) {
        --last;
      }
      if (found.empty() || found.back().first != first || found.back().last != last) {
        found.push_back({x, x, first, last});
      }
      found.back().end = x + 1;
    }
    return found;
  }

  // Rows of the output in an order in which those that read the same input follow each other.
  std::vector<int64_t> row_order() const {
    const int64_t apart = std::clamp<int64_t>(p.dilation_h / p.stride_h, 1, p.out_h);
    std::vector<int64_t> order;
    for (int64_t first = 0; first < apart; ++first) {
      for (int64_t y = first; y < p.out_h; y += apart) {
        order.push_back(y);
      }
    }
    return order;
  }

  // Calls f(tap, offset) for the taps of a span that lie inside of the input at output row y.
  template <typename F>
  void each_tap(const DepthwiseSpan& span, int64_t y, const F& f) const {
    const DepthwiseAxis rows{p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, false};
    for (int64_t i = 0; i < p.kernel_h; ++i) {
      if (rows.feed(y, i) < 0) {
        continue;
      }
      for (int64_t j = span.first; j < span.last; ++j) {
        f(i * p.kernel_w + j, (i * p.dilation_h * p.in_w + j * p.dilation_w) * p.in_channels);
      }
    }
  }

  // Where the window of output (y, x) begins, maybe outside of the input.
  int64_t place(int64_t n, int64_t y, int64_t x) const {
    const int64_t row = n * p.in_h + y * p.stride_h - p.pad_h;
    return (row * p.in_w + x * p.stride_w - p.pad_w) * p.in_channels;
  }

  // The lowest row that output row y reads, which is new to it, from the column of output x on.
  DepthwiseNextRow next_row(const acc_t* from, const acc_t* to, int64_t n, int64_t y, int64_t x) const {
    const int64_t pixel = p.in_channels * static_cast<int64_t>(sizeof(acc_t));
    const int64_t lowest = y * p.stride_h - p.pad_h + (p.kernel_h - 1) * p.dilation_h;
    const int64_t row = n * p.in_h + std::clamp<int64_t>(lowest, 0, p.in_h - 1);
    return {reinterpret_cast<const char*>(from) + (row * p.in_w + std::min(x * p.stride_w, p.in_w - 1)) * pixel,
            reinterpret_cast<const char*>(to) + ((n * p.out_h + y) * p.out_w + x) * pixel, p.stride_w * pixel, pixel};
  }

  // `weight` [KH, KW, C]; `bias` [C] or null.
  void run(const acc_t* from, const acc_t* weight, const acc_t* bias, acc_t* to) const {
    const std::vector<DepthwiseSpan> columns = spans();
    const std::vector<int64_t> order = row_order();
    const int64_t channels = p.in_channels;
    parallel_items(p.batch * p.out_h, (p.in_w + p.out_w) * channels, [&](int64_t begin, int64_t end) {
      std::vector<DepthwisePixelTap<acc_t>> taps(p.taps());
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t n = unit / p.out_h;
        const int64_t y = order[unit - n * p.out_h];
        const int64_t then = std::min(unit + 1, p.batch * p.out_h - 1);
        for (const DepthwiseSpan& span : columns) {
          const DepthwiseNextRow next = next_row(from, to, then / p.out_h, order[then % p.out_h], span.begin);
          int64_t count = 0;
          each_tap(span, y, [&](int64_t tap, int64_t offset) {
            taps[count++] = {place(n, y, span.begin) + offset, weight + tap * channels};
          });
          depthwise_pixel_run(taps.data(), count, from, p.stride_w * channels, span.end - span.begin, channels, bias,
                              to + ((n * p.out_h + y) * p.out_w + span.begin) * channels, next);
        }
      }
    });
  }

  // The gradients [C, KH, KW] and [C]; either may be null.
  void run_weight(const acc_t* from, const acc_t* grad, acc_t* grad_weight, acc_t* grad_bias) const {
    constexpr int64_t kParts = 16;
    constexpr int64_t kRows = 8;  // summed in the type of the input
    const std::vector<DepthwiseSpan> columns = spans();
    const std::vector<int64_t> order = row_order();
    const int64_t channels = p.in_channels;
    const int64_t rows = p.batch * p.out_h;
    const int64_t parts = std::min(kParts, rows);
    const int64_t count = (p.taps() + 1) * channels;
    std::vector<double> totals(parts * count);
    parallel_items(parts, rows / parts * (p.in_w + p.out_w) * channels, [&](int64_t begin, int64_t end) {
      std::vector<acc_t> sums(count);
      std::vector<int64_t> offsets(p.taps());
      std::vector<acc_t*> targets(p.taps());
      for (int64_t part = begin; part < end; ++part) {
        for (int64_t row = rows * part / parts, last = rows * (part + 1) / parts; row < last; ++row) {
          const int64_t n = row / p.out_h;
          const int64_t y = order[row - n * p.out_h];
          const acc_t* upstream = grad + (n * p.out_h + y) * p.out_w * channels;
          for (const DepthwiseSpan& span : columns) {
            int64_t taps = 0;
            each_tap(span, y, [&](int64_t tap, int64_t offset) {
              offsets[taps] = place(n, y, span.begin) + offset;
              targets[taps++] = sums.data() + tap * channels;
            });
            depthwise_weight_run(offsets.data(), grad_weight ? taps : 0, from, p.stride_w * channels,
                                 upstream + span.begin * channels, span.end - span.begin, channels, targets.data());
          }
          if (grad_bias) {
            add_pixels(upstream, p.out_w, channels, sums.data() + p.taps() * channels);
          }
          if ((row + 1) % kRows == 0 || row + 1 == last) {
            add_and_clear(sums.data(), count, totals.data() + part * count);
          }
        }
      }
    });
    for (int64_t i = 0; i < count; ++i) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) {
        sum += totals[part * count + i];
      }
      const int64_t tap = i / channels, c = i % channels;
      if (tap < p.taps() && grad_weight) {
        grad_weight[c * p.taps() + tap] = static_cast<acc_t>(sum);
      } else if (tap == p.taps() && grad_bias) {
        grad_bias[c] = static_cast<acc_t>(sum);
      }
    }
  }
};

}  // namespace segkernels
