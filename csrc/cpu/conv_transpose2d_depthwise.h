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
#include "../common/parallel.h"
#include "../common/simd.h"

namespace segkernels {

template <typename T>
struct Depthwise {
  using acc_t = accumulate_t<T>;
  using G = Gemm<acc_t>;
  using vec = typename G::vec;
  using unaligned_vec = typename G::unaligned_vec;
  static constexpr int64_t kLanes = G::kLanes;

  const ConvTranspose2dParams& p;

  // Input columns that one phase reaches.
  int64_t reach() const {
    return (p.kernel_w + p.stride_w - 1) / p.stride_w;
  }
  // Values of q, whose output columns are [q * stride - padding, ...).
  int64_t steps() const {
    return (p.out_w - 1 + p.pad_w) / p.stride_w + 1;
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
  static SEGKERNELS_INLINE void pad_plane(const T* from, int64_t height, int64_t width, int64_t left, int64_t pitch,
                                          acc_t* to) {
    const int64_t count = std::min(width, pitch - left);
    for (int64_t y = 0; y < height; ++y, from += width, to += pitch) {
      std::fill_n(to, left, acc_t(0));
      for (int64_t x = 0; x < count; ++x) {
        to[left + x] = static_cast<acc_t>(from[x]);
      }
      std::fill(to + left + count, to + pitch, acc_t(0));
    }
  }

  // A tap of a phase: where it reads relative to row q_y of a padded plane.
  struct PhaseTap {
    int64_t offset;
    acc_t weight;
  };

  static SEGKERNELS_INLINE vec phase_sum(const std::vector<PhaseTap>& taps, const acc_t* from) {
    const auto term = [from](const PhaseTap& tap) SEGKERNELS_INLINE_LAMBDA {
      return tap.weight * *reinterpret_cast<const unaligned_vec*>(from + tap.offset);
    };
    vec sum{};
    size_t i = 0;
    for (; i + 4 <= taps.size(); i += 4) {
      sum += (term(taps[i]) + term(taps[i + 1])) + (term(taps[i + 2]) + term(taps[i + 3]));
    }
    for (; i < taps.size(); ++i) {
      sum += term(taps[i]);
    }
    return sum;
  }

  // Phases 0 and 1 of stride 2, side by side as they stand in the output, which starts `padding` into them.
  static SEGKERNELS_INLINE void row_of_two_phases(const std::vector<PhaseTap>& even_taps,
                                                  const std::vector<PhaseTap>& odd_taps, const acc_t* from, acc_t add,
                                                  int64_t padding, int64_t width, T* to) {
    for (int64_t x = -padding; x < width; x += 2 * kLanes, from += kLanes) {
      const vec even = phase_sum(even_taps, from) + add;
      const vec odd = phase_sum(odd_taps, from) + add;
      acc_t edge[2 * kLanes];
      bool whole = false;
      if constexpr (std::is_same_v<T, acc_t>) {
        whole = x >= 0 && x + 2 * kLanes <= width;
      }
      unaligned_vec* row = reinterpret_cast<unaligned_vec*>(edge);
      if constexpr (std::is_same_v<T, acc_t>) {
        row = whole ? reinterpret_cast<unaligned_vec*>(to + x) : row;
      }
      if constexpr (kLanes == 8) {
        row[0] = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
        row[1] = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
      } else {
        row[0] = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
        row[1] = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
      }
      if (!whole) {
        for (int64_t i = std::max<int64_t>(0, -x); i < std::min(2 * kLanes, width - x); ++i) {
          to[x + i] = static_cast<T>(edge[i]);
        }
      }
    }
  }

  SEGKERNELS_CLONES void forward_planes(const T* input, const T* weight, const T* bias, T* output, int64_t begin,
                                        int64_t end) const {
    const int64_t left = reach() - 1;
    const int64_t count = (steps() + kLanes - 1) / kLanes * kLanes;
    const int64_t pitch = left + count;
    // Rows of zeros above and below, so that every output row has all its taps.
    const int64_t above = (p.kernel_h + p.stride_h - 1) / p.stride_h - 1;
    const int64_t rows = (p.out_h - 1 + p.pad_h) / p.stride_h + 1;
    Scratch<acc_t> padded((above + std::max(rows, p.in_h)) * pitch);
    std::fill_n(padded.get(), (above + std::max(rows, p.in_h)) * pitch, acc_t(0));
    Scratch<acc_t> row(p.stride_w * count);
    std::vector<std::vector<PhaseTap>> taps(p.stride_h * p.stride_w);
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t channel = plane % p.in_channels;
      const T* w = weight + channel * p.taps();
      const acc_t add = bias ? static_cast<acc_t>(bias[channel]) : acc_t(0);
      for (std::vector<PhaseTap>& phase : taps) {
        phase.clear();
      }
      for (int64_t ky = 0; ky < p.kernel_h; ++ky) {
        for (int64_t kx = 0; kx < p.kernel_w; ++kx) {
          taps[ky % p.stride_h * p.stride_w + kx % p.stride_w].push_back(
              {left - kx / p.stride_w - ky / p.stride_h * pitch, static_cast<acc_t>(w[ky * p.kernel_w + kx])});
        }
      }
      pad_plane(input + plane * p.in_plane(), p.in_h, p.in_w, left, pitch, padded.get() + above * pitch);
      for (int64_t y = 0; y < p.out_h; ++y) {
        const int64_t q = (y + p.pad_h) / p.stride_h;
        const std::vector<PhaseTap>* phases = taps.data() + (y + p.pad_h - q * p.stride_h) * p.stride_w;
        const acc_t* from = padded.get() + (above + q) * pitch;
        T* to = output + plane * p.out_plane() + y * p.out_w;
        if (p.stride_w == 2) {  // the usual case
          row_of_two_phases(phases[0], phases[1], from, add, p.pad_w, p.out_w, to);
          continue;
        }
        for (int64_t u = 0; u < p.stride_w; ++u) {
          for (int64_t t = 0; t < count; t += kLanes) {
            const vec sum = phase_sum(phases[u], from + t);
            for (int64_t lane = 0; lane < kLanes; ++lane) {
              row.get()[(t + lane) * p.stride_w + u] = sum[lane];
            }
          }
        }
        for (int64_t x = 0; x < p.out_w; ++x) {
          to[x] = static_cast<T>(row.get()[p.pad_w + x] + add);
        }
      }
    }
  }

  void forward(const T* input, const T* weight, const T* bias, T* output) const {
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
  SEGKERNELS_CLONES void backward_channels(const T* input, const T* weight, const T* grad, T* grad_input,
                                           T* grad_weight, T* grad_bias, int64_t begin, int64_t end) const {
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
      const T* w = weight + channel * p.taps();
      double bias_total = 0;
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t n = 0; n < p.batch; ++n) {
        const int64_t plane = n * p.in_channels + channel;
        const T* from = grad + plane * p.out_plane();
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
              taps[count++] = {shifted, static_cast<acc_t>(w[ky * p.kernel_w + kx])};
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
            T* to = grad_input + plane * p.in_plane() + y * p.in_w;
            for (int64_t i = 0; i < p.in_w; ++i) {
              to[i] = static_cast<T>(sums.get()[i]);
            }
          }
        }
        for (int64_t tap = 0; tap < p.taps() && grad_weight; ++tap) {
          total[tap] += lane_sum(reinterpret_cast<const unaligned_vec&>(partial[tap * kLanes]));
        }
      }
      for (int64_t tap = 0; tap < p.taps() && grad_weight; ++tap) {
        grad_weight[channel * p.taps() + tap] = static_cast<T>(static_cast<acc_t>(total[tap]));
      }
      if (grad_bias) {
        grad_bias[channel] = static_cast<T>(static_cast<acc_t>(bias_total));
      }
    }
  }

  // In pieces whose sums stay short, so that their error stays small.
  static SEGKERNELS_INLINE double plane_sum(const T* from, int64_t count) {
    constexpr int64_t kPiece = 1024;
    double total = 0;
    for (int64_t i = 0; i < count; i += kPiece) {
      const int64_t end = std::min(count, i + kPiece);
      acc_t lanes[kLanes] = {};
      int64_t k = i;
      for (; k + kLanes <= end; k += kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          lanes[lane] += static_cast<acc_t>(from[k + lane]);
        }
      }
      for (; k < end; ++k) {
        lanes[0] += static_cast<acc_t>(from[k]);
      }
      for (const acc_t lane : lanes) {
        total += static_cast<double>(lane);
      }
    }
    return total;
  }

  void backward(const T* input, const T* weight, const T* grad, T* grad_input, T* grad_weight, T* grad_bias) const {
    // A channel is one thread's: the order of its sums over the batch depends on nothing else.
    parallel_items(p.in_channels, p.batch * p.out_plane(), [&](int64_t begin, int64_t end) {
      backward_channels(input, weight, grad, grad_input, grad_weight, grad_bias, begin, end);
    });
  }
};

}  // namespace segkernels
