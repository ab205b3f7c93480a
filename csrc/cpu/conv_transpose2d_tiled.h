// Gradients of a transposed convolution whose kernel equals its stride, on the CPU.
//
// Every output pixel has one input pixel and one tap: the gradients are products with the output's gradient read
// through a pixel shuffle, which never exists in memory.
#pragma once

#include <array>
#include <vector>

#include "../common/conv_transpose2d.h"
#include "../common/dispatch.h"
#include "../common/gemm.h"

namespace segkernels {

// A run of consecutive pixels of one image row inside a panel of columns.
struct Run {
  int64_t n, y, x, col, count;
};

template <int kCols>
struct Runs {
  std::array<Run, kCols> run;
  int count = 0;

  Runs(const ConvTranspose2dParams& p, int64_t first, int64_t size) {
    int64_t n = first / p.in_plane();
    int64_t y = (first - n * p.in_plane()) / p.in_w;
    int64_t x = first - n * p.in_plane() - y * p.in_w;
    for (int64_t col = 0; col < size;) {
      const int64_t length = std::min(size - col, p.in_w - x);
      run[count++] = {n, y, x, col, length};
      col += length;
      x = 0;
      if (++y == p.in_h) {
        y = 0;
        ++n;
      }
    }
  }
};

// `to[i * step_to] = from[i * step_from]`.
template <typename T>
SEGKERNELS_INLINE void copy_strided(T* to, int64_t step_to, const T* from, int64_t step_from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i * step_to] = from[i * step_from];
  }
}

// kernel == stride. Rows of the products are (out channel, tap) in NCHW and (tap, out channel) in channels_last, so
// that neighbouring rows are neighbours in the output.
template <typename acc_t>
struct Tiled {
  using G = Gemm<acc_t>;
  static constexpr int64_t kRows = G::kRows;
  static constexpr int64_t kCols = G::kCols;

  const ConvTranspose2dParams& p;
  bool channels_last;

  int64_t rows() const {
    return p.out_channels * p.taps();
  }
  int64_t pixels() const {
    return p.batch * p.in_plane();
  }

  // Where row m stands in a weight row [out_channels, kernel_h, kernel_w] and in the output, relative to pixel (0, 0).
  int64_t weight_offset(int64_t m) const {
    return channels_last ? (m % p.out_channels) * p.taps() + m / p.out_channels : m;
  }
  int64_t out_offset(int64_t m) const {
    const int64_t place = weight_offset(m);
    const int64_t channel = place / p.taps();
    const int64_t tap = place - channel * p.taps();
    const int64_t pixel = tap / p.kernel_w * p.out_w + tap % p.kernel_w;
    return channels_last ? pixel * p.out_channels + channel : channel * p.out_plane() + pixel;
  }
  int64_t out_pixel(const Run& run) const {
    const int64_t pixel = run.y * p.kernel_h * p.out_w + run.x * p.kernel_w;
    return channels_last ? (run.n * p.out_plane() + pixel) * p.out_channels
                         : run.n * p.out_channels * p.out_plane() + pixel;
  }
  int64_t out_step() const {
    return channels_last ? p.kernel_w * p.out_channels : p.kernel_w;
  }
  int64_t in_pixel(const Run& run) const {
    const int64_t pixel = run.y * p.in_w + run.x;
    return channels_last ? (run.n * p.in_plane() + pixel) * p.in_channels
                         : run.n * p.in_channels * p.in_plane() + pixel;
  }
  int64_t in_step() const {
    return channels_last ? p.in_channels : 1;
  }
  int64_t in_channel_step() const {
    return channels_last ? 1 : p.in_plane();
  }
  Runs<kCols> runs(int64_t panel) const {
    return Runs<kCols>(p, panel * kCols, std::min(kCols, pixels() - panel * kCols));
  }

  // [depth][kCols] of the output's gradient: depth is (out channel, tap), columns are pixels.
  SEGKERNELS_CLONES void pack_grad(const acc_t* grad, const int64_t* offsets, int64_t k0, int64_t depth, int64_t panel,
                                   acc_t* to) const {
    std::fill(to, to + depth * kCols, acc_t(0));
    const Runs<kCols> all = runs(panel);
    for (int i = 0; i < all.count; ++i) {
      const Run& run = all.run[i];
      const acc_t* from = grad + out_pixel(run);
      if (channels_last) {
        for (int64_t c = 0; c < run.count; ++c) {
          for (int64_t k = 0; k < depth; ++k) {
            to[k * kCols + run.col + c] = from[c * out_step() + offsets[k0 + k]];
          }
        }
      } else if (p.kernel_w == 2) {
        for (int64_t k = 0; k < depth; ++k) {
          copy_strided(to + k * kCols + run.col, 1, from + offsets[k0 + k], 2, run.count);
        }
      } else {
        for (int64_t k = 0; k < depth; ++k) {
          copy_strided(to + k * kCols + run.col, 1, from + offsets[k0 + k], p.kernel_w, run.count);
        }
      }
    }
  }

  SEGKERNELS_CLONES void store_grad_input(int64_t panel, const acc_t* tiles, acc_t* grad_input) const {
    const Runs<kCols> all = runs(panel);
    for (int64_t m = 0; m < p.in_channels; ++m) {
      const acc_t* row = tiles + (m / kRows) * G::kTile + (m % kRows) * kCols;
      for (int i = 0; i < all.count; ++i) {
        const Run& run = all.run[i];
        copy_strided(grad_input + in_pixel(run) + m * in_channel_step(), in_step(), row + run.col, 1, run.count);
      }
    }
  }

  std::vector<int64_t> out_offsets() const {
    std::vector<int64_t> offsets(rows());
    for (int64_t m = 0; m < rows(); ++m) {
      offsets[m] = out_offset(m);
    }
    return offsets;
  }

  void grad_input(const acc_t* grad, const acc_t* weight, acc_t* result) const {
    const std::vector<int64_t> offsets = out_offsets();
    const auto a = pack_rows<acc_t>(p.in_channels, rows(), [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t m = panel * kRows + r;
        for (int64_t k = 0; k < depth; ++k) {
          to[k * kRows + r] = m < p.in_channels ? weight[m * rows() + weight_offset(k0 + k)] : acc_t(0);
        }
      }
    });
    gemm_columns<acc_t>(
        p.in_channels, rows(), pixels(), a,
        [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
          pack_grad(grad, offsets.data(), k0, depth, panel, to);
        },
        [&](int64_t panel, const acc_t* tiles) { store_grad_input(panel, tiles, result); });
  }

  // [depth][kRows] of the input with a row of ones under its channels: depth is pixels. The row of ones makes the
  // product's last row the sums of the gradient, that is the bias gradient, without reading the gradient again.
  SEGKERNELS_CLONES void pack_input_rows(const acc_t* input, int64_t k0, int64_t depth, int64_t panel,
                                         acc_t* to) const {
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t m = panel * kRows + r;
      for (int64_t k = 0; k < depth;) {
        const int64_t n = (k0 + k) / p.in_plane();
        const int64_t pixel = k0 + k - n * p.in_plane();
        const int64_t count = std::min(depth - k, p.in_plane() - pixel);
        const acc_t* from = input + n * p.in_channels * p.in_plane() + pixel * in_step() + m * in_channel_step();
        acc_t* at = to + k * kRows + r;
        if (m < p.in_channels) {
          copy_strided(at, kRows, from, in_step(), count);
        } else {
          for (int64_t i = 0; i < count; ++i) {
            at[i * kRows] = m == p.in_channels ? acc_t(1) : acc_t(0);
          }
        }
        k += count;
      }
    }
  }

  // [depth][kCols] of the output's gradient: depth is pixels, columns are (out channel, tap).
  SEGKERNELS_CLONES void pack_grad_rows(const acc_t* grad, const int64_t* offsets, int64_t k0, int64_t depth,
                                        int64_t panel, acc_t* to) const {
    const int64_t valid = std::min(kCols, rows() - panel * kCols);
    const int64_t* offset = offsets + panel * kCols;
    if (valid < kCols) {
      std::fill(to, to + depth * kCols, acc_t(0));
    }
    for (int64_t k = 0; k < depth;) {
      const int64_t n = (k0 + k) / p.in_plane();
      const int64_t y = (k0 + k - n * p.in_plane()) / p.in_w;
      const int64_t x = k0 + k - n * p.in_plane() - y * p.in_w;
      const Run run{n, y, x, 0, std::min(depth - k, p.in_w - x)};
      const acc_t* from = grad + out_pixel(run);
      acc_t* at = to + k * kCols;
      const int64_t step = out_step();
      if (!channels_last && p.kernel_w == 2) {
        for (int64_t c = 0; c < valid; c += 2) {
          const acc_t* pair = from + offset[c];
          for (int64_t i = 0; i < run.count; ++i) {
            at[i * kCols + c] = pair[2 * i];
            at[i * kCols + c + 1] = pair[2 * i + 1];
          }
        }
      } else {
        for (int64_t i = 0; i < run.count; ++i) {
          for (int64_t c = 0; c < valid; ++c) {
            at[i * kCols + c] = from[i * step + offset[c]];
          }
        }
      }
      k += run.count;
    }
  }

  // grad_weight [in_channels, out_channels, kernel_h, kernel_w] and grad_bias [out_channels]; either may be null.
  void grad_weight(const acc_t* input, const acc_t* grad, acc_t* result, acc_t* result_bias) const {
    const std::vector<int64_t> offsets = out_offsets();
    std::vector<acc_t> sums(rows());  // of the gradient, per (out channel, tap)
    const int64_t in_rows = p.in_channels + 1;
    const auto pack_a = [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
      pack_input_rows(input, k0, depth, panel, to);
    };
    const auto pack_b = [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
      pack_grad_rows(grad, offsets.data(), k0, depth, panel, to);
    };
    const auto store = [&](int64_t panel, const acc_t* tiles) {
      const int64_t valid = std::min(kCols, rows() - panel * kCols);
      for (int64_t m = 0; m < in_rows; ++m) {
        const acc_t* row = tiles + (m / kRows) * G::kTile + (m % kRows) * kCols;
        for (int64_t c = 0; c < valid; ++c) {
          const int64_t place = panel * kCols + c;
          if (m == p.in_channels) {
            sums[place] = row[c];
          } else if (result) {
            result[m * rows() + weight_offset(place)] = row[c];
          }
        }
      }
    };
    // Parts of the depth while their partial products stay small beside the input; else a packed input for all threads.
    constexpr int64_t kChunks = 8;
    if (kChunks * rows() < pixels() / 2) {
      gemm_depth<acc_t>(in_rows, pixels(), rows(), kChunks, pack_a, pack_b, store);
    } else {
      gemm_columns<acc_t>(in_rows, pixels(), rows(), pack_rows<acc_t>(in_rows, pixels(), pack_a), pack_b, store);
    }
    if (result_bias) {
      std::vector<acc_t> total(p.out_channels);
      for (int64_t m = 0; m < rows(); ++m) {
        total[weight_offset(m) / p.taps()] += sums[m];
      }
      for (int64_t c = 0; c < p.out_channels; ++c) {
        result_bias[c] = total[c];
      }
    }
  }
};

}  // namespace segkernels
