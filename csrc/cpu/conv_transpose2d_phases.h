// Transposed convolution with kernel == 2 * stride and a large stride: FCN's upsampling layers.
//
// Output pixel (q * stride + r - padding) sees exactly the input pixels q and q - 1, through taps r and r + stride. So
// for each of the stride^2 phases (r, u) the layer is a product over (in channel, 2 x 2 neighbours), 2 * 2 * Cin deep,
// instead of Cin * kernel^2 products that col2im adds up. Positions (q, t) number (H + 1) (W + 1); columns are (out
// channel, r, u), so that a vector of columns is a run of output pixels.
#pragma once

#include <cstring>
#include <vector>

#include "../common/conv_transpose2d.h"
#include "../common/dispatch.h"
#include "../common/gemm.h"

namespace segkernels {

inline bool phases_apply(const ConvTranspose2dParams& p) {
  return p.kernel_h == 2 * p.stride_h && p.kernel_w == 2 * p.stride_w && p.stride_w % Gemm<float>::kLanes == 0 &&
         p.dilation_h == 1 && p.dilation_w == 1 && p.groups == 1 && p.output_pad_h <= p.pad_h &&
         p.output_pad_w <= p.pad_w;
}

template <typename acc_t>
struct Phases {
  using G = Gemm<acc_t>;
  static constexpr int64_t kRows = G::kRows;
  static constexpr int64_t kCols = G::kCols;
  static constexpr int64_t kLanes = G::kLanes;
  // Positions handled per sweep over the weights: their packed neighbours and tiles stay in L2.
  static constexpr int64_t kPositions = 512;

  // The output pixel of phase (0, 0) at a position, without padding, and its offset in the output.
  struct Position {
    int64_t n, q, t;
    int64_t y, x, offset;
  };

  const ConvTranspose2dParams& p;
  std::vector<Position> table;  // of all positions: divisions are dear in the inner loops

  explicit Phases(const ConvTranspose2dParams& params) : p(params) {
    table.reserve(positions());
    for (int64_t n = 0; n < p.batch; ++n) {
      for (int64_t q = 0; q <= p.in_h; ++q) {
        for (int64_t t = 0; t <= p.in_w; ++t) {
          const int64_t y = q * p.stride_h;
          const int64_t x = t * p.stride_w;
          table.push_back({n, q, t, y, x, (n * p.out_channels * p.out_h + y) * p.out_w + x});
        }
      }
    }
  }

  int64_t positions_w() const {
    return p.in_w + 1;
  }
  int64_t positions_per_image() const {
    return (p.in_h + 1) * positions_w();
  }
  int64_t positions() const {
    return p.batch * positions_per_image();
  }
  int64_t neighbours() const {
    return p.in_channels * 4;
  }
  int64_t columns() const {
    return p.out_channels * p.stride_h * p.stride_w;
  }

  // Column (out channel, r, u): the first of a run of kLanes, and what it adds to a position's pixel and offset.
  struct Column {
    int64_t channel, r, u;
    int64_t y, x, offset;
  };
  Column column(int64_t index) const {
    const int64_t row = index / p.stride_w;
    const int64_t channel = row / p.stride_h;
    const int64_t r = row - channel * p.stride_h;
    const int64_t u = index - row * p.stride_w;
    const int64_t y = r - p.pad_h;
    const int64_t x = u - p.pad_w;
    return {channel, r, u, y, x, (channel * p.out_h + y) * p.out_w + x};
  }

  int64_t weight_offset(int64_t neighbour, const Column& at) const {
    const int64_t channel = neighbour / 4;
    const int64_t y = at.r + (neighbour / 2 % 2) * p.stride_h;
    const int64_t x = at.u + (neighbour % 2) * p.stride_w;
    return ((channel * p.out_channels + at.channel) * p.kernel_h + y) * p.kernel_w + x;
  }

  // Output pixels of one position and kLanes columns: offset of the first and which lanes exist.
  struct Span {
    int64_t offset, begin, end;
  };
  SEGKERNELS_INLINE Span span(const Position& at, const Column& col) const {
    const int64_t y = at.y + col.y;
    const int64_t x = at.x + col.x;
    const int64_t offset = at.offset + col.offset;
    if (y < 0 || y >= p.out_h) {
      return {0, 0, 0};
    }
    if (x >= 0 && x + kLanes <= p.out_w) {
      return {offset, 0, kLanes};
    }
    const int64_t begin = std::clamp<int64_t>(-x, 0, kLanes);
    return {offset, begin, std::clamp<int64_t>(p.out_w - x, begin, kLanes)};
  }

  // Calls full(i, offset) for positions first + i whose lanes all exist, and partial(i, span) for the others: the
  // checks are made once a row of positions, since a span is only a few cycles of work.
  template <typename Full, typename Partial>
  SEGKERNELS_INLINE void for_spans(int64_t first, int64_t count, const Column& col, const Full& full,
                                   const Partial& partial) const {
    const int64_t low = col.x >= 0 ? 0 : (-col.x + p.stride_w - 1) / p.stride_w;
    const int64_t room = p.out_w - kLanes - col.x;
    const int64_t high = room < 0 ? 0 : room / p.stride_w + 1;  // past the last full one
    for (int64_t i = 0; i < count;) {
      const Position& at = table[first + i];
      const int64_t run = std::min(count - i, positions_w() - at.t);
      const int64_t y = at.y + col.y;
      const bool exists = y >= 0 && y < p.out_h;
      const int64_t begin = exists ? std::clamp<int64_t>(low - at.t, 0, run) : run;
      const int64_t end = std::clamp<int64_t>(high - at.t, begin, run);
      for (int64_t t = 0; t < begin; ++t) {
        partial(i + t, span(table[first + i + t], col));
      }
      for (int64_t t = begin; t < end; ++t) {
        full(i + t, at.offset + col.offset + t * p.stride_w);
      }
      for (int64_t t = end; t < run; ++t) {
        partial(i + t, span(table[first + i + t], col));
      }
      i += run;
    }
  }

  acc_t input_at(const acc_t* input, int64_t neighbour, const Position& at) const {
    const int64_t y = at.q - neighbour / 2 % 2;
    const int64_t x = at.t - neighbour % 2;
    if (y < 0 || y >= p.in_h || x < 0 || x >= p.in_w) {
      return acc_t(0);
    }
    return input[((at.n * p.in_channels + neighbour / 4) * p.in_h + y) * p.in_w + x];
  }

  // Every kRows-th of `to` is a neighbour of one position, [depth]: whole channels, which are four neighbours each.
  void pack_neighbours(const acc_t* input, const Position& at, int64_t k0, int64_t depth, acc_t* to) const {
    const acc_t* pixel = input + (at.n * p.in_channels + k0 / 4) * p.in_plane() + at.q * p.in_w + at.t;
    const bool top = at.q > 0, left = at.t > 0, bottom = at.q < p.in_h, right = at.t < p.in_w;
    for (int64_t k = 0; k < depth; k += 4, pixel += p.in_plane(), to += 4 * kRows) {
      to[0] = bottom && right ? pixel[0] : acc_t(0);
      to[kRows] = bottom && left ? pixel[-1] : acc_t(0);
      to[2 * kRows] = top && right ? pixel[-p.in_w] : acc_t(0);
      to[3 * kRows] = top && left ? pixel[-p.in_w - 1] : acc_t(0);
    }
  }

  // [depth][kCols] of the weight: depth is the neighbour, columns are (out channel, r, u).
  SEGKERNELS_CLONES void pack_weight(const acc_t* weight, int64_t k0, int64_t depth, int64_t panel, acc_t* to) const {
    for (int64_t c = 0; c < kCols; c += kLanes) {
      const int64_t first = panel * kCols + c;
      const Column col = column(first);
      for (int64_t k = 0; k < depth; ++k) {
        acc_t* at = to + k * kCols + c;
        const acc_t* from = weight + (first < columns() ? weight_offset(k0 + k, col) : 0);
        // The taps of one k lie a plane apart, too far for the hardware to foresee the next row's: 18.4 -> 17.4 ms
        // (FCN-32s).
        __builtin_prefetch(from + p.kernel_w);
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          at[lane] = first < columns() ? from[lane] : acc_t(0);
        }
      }
    }
  }

  // [depth][kCols] of the output's gradient: depth is the position, columns are (out channel, r, u).
  SEGKERNELS_CLONES void pack_grad(const acc_t* grad, int64_t k0, int64_t depth, int64_t panel, acc_t* to) const {
    for (int64_t c = 0; c < kCols; c += kLanes) {
      const int64_t first = panel * kCols + c;
      const Column col = column(first);
      if (first >= columns()) {
        for (int64_t k = 0; k < depth; ++k) {
          std::fill_n(to + k * kCols + c, kLanes, acc_t(0));
        }
        continue;
      }
      for_spans(
          k0, depth, col,
          [&](int64_t k, int64_t offset) SEGKERNELS_INLINE_LAMBDA {
            for (int64_t lane = 0; lane < kLanes; ++lane) {
              to[k * kCols + c + lane] = grad[offset + lane];
            }
          },
          [&](int64_t k, const Span& s) SEGKERNELS_INLINE_LAMBDA { load_span(grad, s, to + k * kCols + c); });
    }
  }

  static SEGKERNELS_INLINE void load_span(const acc_t* from, const Span& s, acc_t* lanes) {
    if (s.begin == 0 && s.end == kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = from[s.offset + lane];
      }
    } else {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = lane >= s.begin && lane < s.end ? from[s.offset + lane] : acc_t(0);
      }
    }
  }

  SEGKERNELS_CLONES void store_output(int64_t first_position, int64_t count, int64_t panel, const acc_t* tiles,
                                      const acc_t* bias, acc_t* output) const {
    for (int64_t c = 0; c < kCols && panel * kCols + c < columns(); c += kLanes) {
      const Column col = column(panel * kCols + c);
      const acc_t add = bias ? bias[col.channel] : acc_t(0);
      // Rows of a tile and tiles follow each other at the same distance.
      const acc_t* rows = tiles + c;
      for_spans(
          first_position, count, col,
          [&](int64_t i, int64_t offset) SEGKERNELS_INLINE_LAMBDA {
            for (int64_t lane = 0; lane < kLanes; ++lane) {
              output[offset + lane] = rows[i * kCols + lane] + add;
            }
          },
          [&](int64_t i, const Span& s) SEGKERNELS_INLINE_LAMBDA {
            for (int64_t lane = s.begin; lane < s.end; ++lane) {
              output[s.offset + lane] = rows[i * kCols + lane] + add;
            }
          });
    }
  }

  // The output's lines come into the cache while the sums before them are made.
  SEGKERNELS_INLINE void prefetch_output(int64_t first_position, int64_t count, int64_t panel,
                                         const acc_t* output) const {
    for (int64_t c = 0; c < kCols && panel * kCols + c < columns(); c += kLanes) {
      const int64_t offset = column(panel * kCols + c).offset;
      for (int64_t i = 0; i < count; ++i) {
        __builtin_prefetch(output + table[first_position + i].offset + offset, 1);
      }
    }
  }

  // `count` positions, whose neighbours are packed in `a`, with all columns.
  void multiply(int64_t first, int64_t count, const Scratch<acc_t>& a, const acc_t* weight, const acc_t* bias,
                acc_t* output) const {
    constexpr int64_t kGroup = 16;  // row panels that are stored together, from L1
    const int64_t row_panels = G::row_panels(count);
    parallel_items(G::col_panels(columns()), count * neighbours(), [&](int64_t begin, int64_t end) {
      Scratch<acc_t> b(kCols * neighbours());
      Scratch<acc_t> tiles(kGroup * G::kTile);
      for (int64_t panel = begin; panel < end; ++panel) {
        pack_weight(weight, 0, neighbours(), panel, b.get());
        for (int64_t row = 0; row < row_panels; row += kGroup) {
          const int64_t group = std::min(kGroup, row_panels - row);
          const int64_t stored = std::min(group * kRows, count - row * kRows);
          prefetch_output(first + row * kRows, stored, panel, output);
          for (int64_t k0 = 0; k0 < neighbours(); k0 += G::kDepth) {
            const int64_t depth = std::min(G::kDepth, neighbours() - k0);
            gemm_column_panel<acc_t>(group, depth, a.get() + (k0 * row_panels + row * depth) * kRows,
                                     b.get() + k0 * kCols, tiles.get(), k0 > 0);
          }
          store_output(first + row * kRows, stored, panel, tiles.get(), bias, output);
        }
      }
    });
  }

  void forward(const acc_t* input, const acc_t* weight, const acc_t* bias, acc_t* output) const {
    for (int64_t first = 0; first < positions(); first += kPositions) {
      const int64_t count = std::min(kPositions, positions() - first);
      const auto a = pack_rows<acc_t>(count, neighbours(), [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
        for (int64_t r = 0; r < kRows; ++r) {
          const Position& at = table[std::min(first + panel * kRows + r, positions() - 1)];
          pack_neighbours(input, at, k0, depth, to + r);
        }
      });
      multiply(first, count, a, weight, bias, output);
    }
  }

  // [depth][kRows] of the weight: depth is (out channel, r, u), rows are neighbours.
  SEGKERNELS_CLONES void pack_weight_rows(const acc_t* weight, int64_t k0, int64_t depth, int64_t panel,
                                          acc_t* to) const {
    for (int64_t k = 0; k < depth; k += kLanes) {
      const Column col = column(k0 + k);
      for (int64_t r = 0; r < kRows; ++r) {
        const acc_t* from = weight + weight_offset(panel * kRows + r, col);
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          to[(k + lane) * kRows + r] = from[lane];
        }
      }
    }
  }

  // [depth][kCols] of the output's gradient: depth is (out channel, r, u), columns are positions.
  SEGKERNELS_CLONES void pack_grad_columns(const acc_t* grad, int64_t k0, int64_t depth, int64_t panel,
                                           acc_t* to) const {
    for (int64_t k = 0; k < depth; k += kLanes) {
      const Column col = column(k0 + k);
      for (int64_t c = 0; c < kCols; ++c) {
        const int64_t index = panel * kCols + c;
        acc_t lanes[kLanes];
        load_span(grad, index < positions() ? span(table[index], col) : Span{0, 0, 0}, lanes);
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          to[(k + lane) * kCols + c] = lanes[lane];
        }
      }
    }
  }

  void grad_input(const acc_t* grad, const acc_t* weight, acc_t* result) const {
    // Per neighbour and position; an input pixel then adds up the four positions that saw it.
    Scratch<acc_t> seen(neighbours() * positions());
    const auto pack_a = [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
      pack_weight_rows(weight, k0, depth, panel, to);
    };
    const auto pack_b = [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
      pack_grad_columns(grad, k0, depth, panel, to);
    };
    const auto store = [&](int64_t panel, const acc_t* tiles) {
      const int64_t count = std::min(kCols, positions() - panel * kCols);
      for (int64_t k = 0; k < neighbours(); ++k) {
        const acc_t* row = tiles + (k / kRows) * G::kTile + (k % kRows) * kCols;
        std::copy_n(row, count, seen.get() + k * positions() + panel * kCols);
      }
    };
    constexpr int64_t kChunks = 8;
    if (columns() > positions()) {
      gemm_depth<acc_t>(neighbours(), columns(), positions(), kChunks, pack_a, pack_b, store);
    } else {
      const auto a = pack_rows<acc_t>(neighbours(), columns(), pack_a);
      gemm_columns<acc_t>(neighbours(), columns(), positions(), a, pack_b, store);
    }
    parallel_items(p.batch * p.in_channels, 4 * p.in_plane(), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const int64_t n = plane / p.in_channels;
        const acc_t* from = seen.get() + 4 * (plane - n * p.in_channels) * positions() + n * positions_per_image();
        for (int64_t y = 0; y < p.in_h; ++y) {
          for (int64_t x = 0; x < p.in_w; ++x) {
            const acc_t* at = from + y * positions_w() + x;
            result[plane * p.in_plane() + y * p.in_w + x] =
                (at[0] + at[positions() + 1]) +
                (at[2 * positions() + positions_w()] + at[3 * positions() + positions_w() + 1]);
          }
        }
      }
    });
  }

  void grad_weight(const acc_t* input, const acc_t* grad, acc_t* result, acc_t* result_bias) const {
    const int64_t rows = neighbours() + 1;  // the last row is ones: its product is the bias gradient
    std::vector<acc_t> sums(columns());
    const auto a = pack_rows<acc_t>(rows, positions(), [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
      for (int64_t k = 0; k < depth; ++k) {
        const Position& at = table[k0 + k];
        for (int64_t r = 0; r < kRows; ++r) {
          const int64_t row = panel * kRows + r;
          to[k * kRows + r] = row < neighbours() ? input_at(input, row, at) : acc_t(row == neighbours() ? 1 : 0);
        }
      }
    });
    gemm_columns<acc_t>(
        rows, positions(), columns(), a,
        [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) { pack_grad(grad, k0, depth, panel, to); },
        [&](int64_t panel, const acc_t* tiles) {
          for (int64_t c = 0; c < kCols && panel * kCols + c < columns(); c += kLanes) {
            const int64_t first = panel * kCols + c;
            const Column col = column(first);
            for (int64_t k = 0; k < rows; ++k) {
              const acc_t* row = tiles + (k / kRows) * G::kTile + (k % kRows) * kCols + c;
              if (k == neighbours()) {
                std::copy_n(row, kLanes, sums.data() + first);
              } else if (result) {
                std::copy_n(row, kLanes, result + weight_offset(k, col));
              }
            }
          }
        });
    if (result_bias) {
      const int64_t phases = p.stride_h * p.stride_w;
      for (int64_t channel = 0; channel < p.out_channels; ++channel) {
        acc_t total = 0;
        for (int64_t i = 0; i < phases; ++i) {
          total += sums[channel * phases + i];
        }
        result_bias[channel] = total;
      }
    }
  }
};

}  // namespace segkernels
