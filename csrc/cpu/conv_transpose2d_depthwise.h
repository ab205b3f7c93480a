// Transposed convolution of every channel on its own (groups == channels: upsampling as a layer), on the CPU in NCHW.
//
// Output column x = q * stride + u - padding sees the input columns q, q - 1, ... through the taps u, u + stride, ...:
// for each of the `stride` phases u a row is a sum of shifted input rows, contiguous in q. Vectors of phases are put
// together and the output is written once; backward takes the gradient's rows apart the same way.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/conv_transpose2d.h"
#include "../common/dispatch.h"
#include "../common/gemm.h"
#include "../common/loss_blocks.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace segkernels {

template <typename acc_t>
struct Depthwise {
  using G = Gemm<acc_t>;
  using vec = typename G::vec;
  using unaligned_vec = typename G::unaligned_vec;
  static constexpr int64_t kLanes = G::kLanes;

  const ConvTranspose2dParams& p;

  // Input columns that one phase reaches.
  int64_t reach() const {
    return (p.kernel_w + p.stride_w - 1) / p.stride_w;
  }
  // row[q * stride + u] -> phases[u][q].
  SEGKERNELS_INLINE void take_apart(const acc_t* row, int64_t pitch, acc_t* phases) const {
    if (p.stride_w == 2) {  // the usual case, which a known stride makes vectors of
      acc_t* other = phases + pitch;
      for (int64_t q = 0; q < pitch; ++q) {
        phases[q] = row[2 * q];
        other[q] = row[2 * q + 1];
      }
      return;
    }
    for (int64_t u = 0; u < p.stride_w; ++u) {
      for (int64_t q = 0; q < pitch; ++q) {
        phases[u * pitch + q] = row[q * p.stride_w + u];
      }
    }
  }

  struct Tap {
    const acc_t* from;
    acc_t weight;
  };

  // to[i] = the sum over taps of weight * from[i].
  static SEGKERNELS_INLINE void add_taps(const Tap* taps, int64_t tap_count, acc_t* to, int64_t count) {
    int64_t done = 0;
    for (; done + 4 <= tap_count; done += 4) {
      const Tap &a = taps[done], &b = taps[done + 1], &c = taps[done + 2], &d = taps[done + 3];
      if (done == 0) {
        for (int64_t i = 0; i < count; ++i) {
          to[i] = (a.weight * a.from[i] + b.weight * b.from[i]) + (c.weight * c.from[i] + d.weight * d.from[i]);
        }
      } else {
        for (int64_t i = 0; i < count; ++i) {
          to[i] += (a.weight * a.from[i] + b.weight * b.from[i]) + (c.weight * c.from[i] + d.weight * d.from[i]);
        }
      }
    }
    if (done == 0) {
      std::fill_n(to, count, acc_t(0));
    }
    for (; done < tap_count; ++done) {
      const Tap& tap = taps[done];
      for (int64_t i = 0; i < count; ++i) {
        to[i] += tap.weight * tap.from[i];
      }
    }
  }

  // A plane as [H][pitch] in acc_t: row y starts `left` zeros in, and zeros follow it.
  static SEGKERNELS_INLINE void pad_plane(const acc_t* from, int64_t height, int64_t width, int64_t left, int64_t pitch,
                                          acc_t* to) {
    const int64_t count = std::min(width, pitch - left);
    for (int64_t y = 0; y < height; ++y, from += width, to += pitch) {
      std::fill_n(to, left, acc_t(0));
      for (int64_t x = 0; x < count; ++x) {
        to[left + x] = from[x];
      }
      std::fill(to + left + count, to + pitch, acc_t(0));
    }
  }

  // A tap of a phase: where it reads relative to row q of a padded plane.
  struct PhaseTap {
    int64_t offset;
    acc_t weight;
  };

  static SEGKERNELS_INLINE vec load(const acc_t* from) {
    return *reinterpret_cast<const unaligned_vec*>(from);
  }

  static SEGKERNELS_INLINE vec phase_sum(const std::vector<PhaseTap>& taps, const acc_t* from, acc_t add) {
    vec sum{};
    for (const PhaseTap& tap : taps) {
      sum += tap.weight * load(from + tap.offset);
    }
    return sum + add;
  }

  // A row of phases 0 and 1 of stride 2, side by side. sum(phase, j) is a vector of pixels 2 * j + phase, 2 apart.
  template <typename Sum>
  static SEGKERNELS_INLINE void interleave(const Sum& sum, int64_t width, acc_t* to) {
    constexpr int64_t kStep = 2 * kLanes;
    const auto put = [&sum](int64_t x, acc_t* row) SEGKERNELS_INLINE_LAMBDA {
      const vec even = sum(0, x / 2);
      const vec odd = sum(1, x / 2);
      unaligned_vec* pair = reinterpret_cast<unaligned_vec*>(row);
      if constexpr (kLanes == 8) {
        pair[0] = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
        pair[1] = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
      } else {
        pair[0] = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
        pair[1] = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
      }
    };
    int64_t x = 0;
    for (; x + kStep <= width; x += kStep) {
      put(x, to + x);
    }
    if (x < width && x > 0 && width % 2 == 0) {  // the last vectors overlap those before
      put(width - kStep, to + width - kStep);
    } else if (x < width) {
      acc_t edge[kStep];
      put(x, edge);
      std::copy_n(edge, width - x, to + x);
    }
  }

  // Where pixel 0 of an output row's phase u stands: which of the kernel's phases it is, and its column of the input.
  struct Start {
    int64_t phase, column;
  };
  Start start(int64_t u) const {
    return {(u + p.pad_w) % p.stride_w, (u + p.pad_w) / p.stride_w};
  }

  // A row of the output. `taps` are those of its phases, `from` is row q of the padded plane, rows of `pitch`.
  SEGKERNELS_INLINE void output_row(const std::vector<PhaseTap>* taps, const std::vector<Start>& starts,
                                    const acc_t* from, int64_t pitch, acc_t add, acc_t* to) const {
    if (p.stride_w == 2) {
      const std::vector<PhaseTap>&even = taps[starts[0].phase], &odd = taps[starts[1].phase];
      const acc_t* columns[] = {from + starts[0].column, from + starts[1].column};
      if (p.kernel_h == 2 * p.stride_h && p.kernel_w == 4) {
        row_of_2x2(even.data(), odd.data(), columns, pitch, add, to);
        return;
      }
      const auto sum = [&](int u, int64_t j)
                           SEGKERNELS_INLINE_LAMBDA { return phase_sum(u ? odd : even, columns[u] + j, add); };
      interleave(sum, p.out_w, to);
      return;
    }
    for (int64_t u = 0; u < p.stride_w; ++u) {
      const acc_t* at = from + starts[u].column;
      for (int64_t x = u; x < p.out_w; x += kLanes * p.stride_w, at += kLanes) {
        const vec sum = phase_sum(taps[starts[u].phase], at, add);
        for (int64_t lane = 0; lane < kLanes && x + lane * p.stride_w < p.out_w; ++lane) {
          to[x + lane * p.stride_w] = sum[lane];
        }
      }
    }
  }

  // The usual case: 2 x 2 taps a phase, whose weights stay in registers.
  SEGKERNELS_INLINE void row_of_2x2(const PhaseTap* even, const PhaseTap* odd, const acc_t* const* columns,
                                    int64_t pitch, acc_t add, acc_t* to) const {
    const acc_t weights[2][4] = {{even[0].weight, even[1].weight, even[2].weight, even[3].weight},
                                 {odd[0].weight, odd[1].weight, odd[2].weight, odd[3].weight}};
    const auto sum = [&](int u, int64_t j) SEGKERNELS_INLINE_LAMBDA {
      const acc_t* w = weights[u];
      const acc_t *upper = columns[u] + j, *lower = upper - pitch;
      const vec above = w[0] * load(upper) + w[1] * load(upper - 1);
      const vec below = w[2] * load(lower) + w[3] * load(lower - 1);
      return (above + below) + add;
    };
    interleave(sum, p.out_w, to);
  }

  // A padded plane of the input: rows of zeros above and below and columns of them left and right, so that every pixel
  // of the output has all its taps.
  struct Padded {
    int64_t above, left, pitch, rows;
  };
  Padded padded() const {
    const int64_t above = (p.kernel_h + p.stride_h - 1) / p.stride_h - 1;
    const int64_t columns = start(p.stride_w - 1).column + (p.out_w + p.stride_w - 1) / p.stride_w + kLanes;
    const int64_t rows = (p.out_h - 1 + p.pad_h) / p.stride_h + 1;
    return {above, reach() - 1, reach() - 1 + std::max(columns, p.in_w), above + std::max(rows, p.in_h)};
  }

  SEGKERNELS_CLONES void output_plane(const Padded& shape, const acc_t* padded,
                                      const std::vector<std::vector<PhaseTap>>& taps, acc_t add, acc_t* to) const {
    std::vector<Start> starts(p.stride_w);
    for (int64_t u = 0; u < p.stride_w; ++u) {
      starts[u] = start(u);
    }
    int64_t r = p.pad_h % p.stride_h;
    const acc_t* from = padded + (shape.above + p.pad_h / p.stride_h) * shape.pitch + shape.left;
    for (int64_t y = 0; y < p.out_h; ++y, to += p.out_w) {
      output_row(taps.data() + r * p.stride_w, starts, from, shape.pitch, add, to);
      if (++r == p.stride_h) {
        r = 0;
        from += shape.pitch;
      }
    }
  }

  template <typename T>
  void forward_planes(const T* input, const acc_t* weight, const acc_t* bias, T* output, int64_t begin,
                      int64_t end) const {
    const Padded shape = padded();
    Scratch<acc_t> plane_values(shape.rows * shape.pitch);
    std::fill_n(plane_values.get(), shape.rows * shape.pitch, acc_t(0));
    Scratch<acc_t> converted(std::is_same_v<T, acc_t> ? 0 : p.out_plane());
    std::vector<std::vector<PhaseTap>> taps(p.stride_h * p.stride_w);
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t channel = plane % p.in_channels;
      for (std::vector<PhaseTap>& phase : taps) {
        phase.clear();
      }
      const acc_t* w = weight + channel * p.taps();
      for (int64_t ky = 0; ky < p.kernel_h; ++ky) {
        for (int64_t kx = 0; kx < p.kernel_w; ++kx, ++w) {
          taps[ky % p.stride_h * p.stride_w + kx % p.stride_w].push_back(
              {-kx / p.stride_w - ky / p.stride_h * shape.pitch, *w});
        }
      }
      for (int64_t y = 0; y < p.in_h; ++y) {
        const T* from = input + plane * p.in_plane() + y * p.in_w;
        acc_t* to = plane_values.get() + (shape.above + y) * shape.pitch + shape.left;
        if constexpr (std::is_same_v<T, acc_t>) {
          std::copy_n(from, p.in_w, to);
        } else {
          load_values(from, 1, p.in_w, to);
        }
      }
      const acc_t add = bias ? bias[channel] : acc_t(0);
      T* to = output + plane * p.out_plane();
      if constexpr (std::is_same_v<T, acc_t>) {
        output_plane(shape, plane_values.get(), taps, add, to);
      } else {
        output_plane(shape, plane_values.get(), taps, add, converted.get());
        store_values(converted.get(), 1, p.out_plane(), to);
      }
    }
  }

  template <typename T>
  void forward(const T* input, const acc_t* weight, const acc_t* bias, T* output) const {
    parallel_items(p.batch * p.in_channels, p.out_plane(),
                   [&](int64_t begin, int64_t end) { forward_planes(input, weight, bias, output, begin, end); });
  }

  // Sum of the lanes of a vector of partial sums.
  static SEGKERNELS_INLINE double lane_sum(vec sum) {
    double total = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      total += static_cast<double>(sum[lane]);
    }
    return total;
  }

  // All gradients of some channels, in one pass over the output's gradient; those that are null are left out.
  SEGKERNELS_CLONES void backward_channels(const acc_t* input, const acc_t* weight, const acc_t* grad,
                                           acc_t* grad_input, acc_t* grad_weight, acc_t* grad_bias, int64_t begin,
                                           int64_t end) const {
    const int64_t width = (p.in_w + kLanes - 1) / kLanes * kLanes;
    const int64_t pitch = width + reach() - 1;
    Scratch<acc_t> x(p.in_h * width);
    Scratch<acc_t> g(p.out_h * p.stride_w * pitch);  // [OH][phase][q]
    Scratch<acc_t> row(p.stride_w * pitch);
    Scratch<acc_t> sums(width);
    std::vector<Tap> taps(p.taps());
    std::vector<acc_t> partial(p.taps() * kLanes);
    std::vector<double> total(p.taps());
    for (int64_t channel = begin; channel < end; ++channel) {
      const acc_t* w = weight + channel * p.taps();
      double bias_total = 0;
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t n = 0; n < p.batch; ++n) {
        const int64_t plane = n * p.in_channels + channel;
        const acc_t* from = grad + plane * p.out_plane();
        for (int64_t y = 0; y < p.out_h; ++y) {
          pad_plane(from + y * p.out_w, 1, p.out_w, std::min(p.pad_w, p.stride_w * pitch), p.stride_w * pitch,
                    row.get());
          take_apart(row.get(), pitch, g.get() + y * p.stride_w * pitch);
        }
        if (grad_bias) {
          bias_total += plane_sum(from, p.out_plane());
        }
        if (grad_weight) {
          pad_plane(input + plane * p.in_plane(), p.in_h, p.in_w, 0, width, x.get());
          std::fill(partial.begin(), partial.end(), acc_t(0));
        }
        for (int64_t y = 0; y < p.in_h; ++y) {
          int64_t count = 0;
          for (int64_t ky = 0; ky < p.kernel_h; ++ky) {
            const int64_t at = y * p.stride_h + ky - p.pad_h;
            if (at < 0 || at >= p.out_h) {
              continue;
            }
            for (int64_t kx = 0; kx < p.kernel_w; ++kx) {
              const int64_t j = kx / p.stride_w;
              const acc_t* shifted = g.get() + (at * p.stride_w + kx - j * p.stride_w) * pitch + j;
              taps[count++] = {shifted, w[ky * p.kernel_w + kx]};
              if (grad_weight) {
                unaligned_vec& sum = reinterpret_cast<unaligned_vec&>(partial[(ky * p.kernel_w + kx) * kLanes]);
                vec running = sum;
                for (int64_t i = 0; i < width; i += kLanes) {
                  running += *reinterpret_cast<const unaligned_vec*>(x.get() + y * width + i) *
                             *reinterpret_cast<const unaligned_vec*>(shifted + i);
                }
                sum = running;
              }
            }
          }
          if (grad_input) {
            add_taps(taps.data(), count, sums.get(), p.in_w);
            acc_t* to = grad_input + plane * p.in_plane() + y * p.in_w;
            for (int64_t i = 0; i < p.in_w; ++i) {
              to[i] = sums.get()[i];
            }
          }
        }
        for (int64_t tap = 0; tap < p.taps() && grad_weight; ++tap) {
          total[tap] += lane_sum(reinterpret_cast<const unaligned_vec&>(partial[tap * kLanes]));
        }
      }
      for (int64_t tap = 0; tap < p.taps() && grad_weight; ++tap) {
        grad_weight[channel * p.taps() + tap] = static_cast<acc_t>(total[tap]);
      }
      if (grad_bias) {
        grad_bias[channel] = static_cast<acc_t>(bias_total);
      }
    }
  }

  // In pieces whose sums stay short, so that their error stays small.
  static SEGKERNELS_INLINE double plane_sum(const acc_t* from, int64_t count) {
    constexpr int64_t kPiece = 1024;
    double total = 0;
    for (int64_t i = 0; i < count; i += kPiece) {
      const int64_t end = std::min(count, i + kPiece);
      acc_t lanes[kLanes] = {};
      int64_t k = i;
      for (; k + kLanes <= end; k += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          lanes[lane] += from[k + lane];
        }
      }
      for (; k < end; ++k) {
        lanes[0] += from[k];
      }
      for (const acc_t lane : lanes) {
        total += static_cast<double>(lane);
      }
    }
    return total;
  }

  void backward(const acc_t* input, const acc_t* weight, const acc_t* grad, acc_t* grad_input, acc_t* grad_weight,
                acc_t* grad_bias) const {
    // A channel is one thread's: the order of its sums over the batch depends on nothing else.
    parallel_items(p.in_channels, p.batch * p.out_plane(), [&](int64_t begin, int64_t end) {
      backward_channels(input, weight, grad, grad_input, grad_weight, grad_bias, begin, end);
    });
  }
};

}  // namespace segkernels
