// Transposed convolution whose kernel is a small multiple of its stride, forward, on the CPU in NCHW: U-Net's decoder
// (kernel == stride), DCGAN's and FCN's k = 4, s = 2.
//
// The output is cut into cells of stride_h x stride_w pixels. Pixel (r, u) of cell (i, j) sees window_h x window_w
// input pixels, (i + shift(r) - wy, j + shift(u) - wx), through one tap each: for each of the stride^2 phases (r, u) a
// product over (in channel, window). Cells stand side by side in rows of `pitch`, the map's width and its zero border,
// so that a neighbour of 24 cells is 24 consecutive values, at another place of the same panel. The phases of 4 out
// channels are multiplied one after the other and leave as rows of the output, straight from L1: nothing of the
// output's size is read again or written twice.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/conv_transpose2d.h"
#include "../common/dispatch.h"
#include "../common/gemm.h"
#include "../common/loss_blocks.h"
#include "../common/vecmath.h"
#include "conv_transpose2d_cell_grid.h"

namespace segkernels {

template <typename acc_t>
struct Cells : CellGrid {
  using G = Gemm<acc_t>;
  static_assert(G::kRows == kRows);
  static constexpr int64_t kCols = G::kCols;
  static constexpr int64_t kPanels = 4;                       // of columns, packed together: longer runs of the input
  static constexpr int64_t kChunkRows = 256;                  // whose weights stay in L2 for all panels of a group
  static constexpr int64_t kPanelValues = kCols * G::kDepth;  // of a block of channels in L1

  explicit Cells(const ConvTranspose2dParams& params) : CellGrid(params, kCols, G::kLanes, kPanelValues) {}

  static SEGKERNELS_INLINE void copy_rows(const acc_t* from, const int64_t* place, acc_t* to) {
    if (place[0] >= 0 && place[kRows - 1] == place[0] + kRows - 1) {
      for (int64_t r = 0; r < kRows; ++r) {
        to[r] = from[place[0] + r];
      }
      return;
    }
    for (int64_t r = 0; r < kRows; ++r) {
      to[r] = place[r] < 0 ? acc_t(0) : from[place[r]];
    }
  }

  // [block][unit][tile][segment][channel][kRows].
  Scratch<acc_t> pack_weight(const acc_t* weight) const {
    constexpr int64_t kUnits = 8;  // packed together: they lie side by side in the weight
    const int64_t unit_rows = tiles * segments * kRows;
    const int64_t step = p.out_channels * p.taps();
    std::vector<int64_t> place(units * unit_rows);  // of a packed row in an in channel's weights; -1: a row of zeros
    for (int64_t i = 0; i < units * unit_rows; ++i) {
      const int64_t segment = i / kRows % segments;
      const Row at = row(i / unit_rows, i / (segments * kRows) % tiles, i % kRows);
      const int64_t ky = v.tap(at.r, segment / h.window);
      const int64_t kx = h.tap(at.u, segment % h.window);
      place[i] = at.channel < p.out_channels ? at.channel * p.taps() + ky * p.kernel_w + kx : -1;
    }
    Scratch<acc_t> packed(packed_before(p.in_channels));
    parallel_items((units + kUnits - 1) / kUnits, kUnits * unit_rows * p.in_channels, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * kUnits; first < std::min(units, end * kUnits); first += kUnits) {
        const int64_t last = std::min(units, first + kUnits);
        for (int64_t k0 = 0; k0 < p.in_channels; k0 += channel_block) {
          const int64_t count = std::min(channel_block, p.in_channels - k0);
          acc_t* to = packed.get() + packed_before(k0);
          // Whole cache lines of packed weights at a time: rows of both lie a power of two apart.
          for (int64_t k = 0; k < count; k += kRows) {
            const acc_t* from = weight + (k0 + k) * step;
            for (int64_t i = first * unit_rows; i < last * unit_rows; i += kRows) {
              acc_t* line = to + i * count + k * kRows;
              for (int64_t d = 0; d < std::min(kRows, count - k); ++d) {
                copy_rows(from + d * step, place.data() + i, line + d * kRows);
              }
            }
          }
        }
      }
    });
    return packed;
  }

  // Where the input comes from. Half types go through `load`, which converts `count` values from `offset` on.
  struct Source {
    const acc_t* data;
    void (*load)(const void* data, int64_t offset, int64_t count, acc_t* to);
    const void* half_data;
    int64_t value_bytes;

    const char* bytes(int64_t offset) const {
      return static_cast<const char*>(half_data) + offset * value_bytes;
    }
  };

  SEGKERNELS_CLONES void pack_input(const Source& input, int64_t offset, const std::vector<Copy>& list, int64_t depth,
                                    acc_t* to) const {
    for (int64_t k = 0; k < depth; ++k, offset += p.in_plane(), to += wide) {
      for (const Copy& copy : list) {
        acc_t* at = to + copy.to;
        if (input.load) {
          input.load(input.half_data, offset + copy.from, copy.count, at);
          continue;
        }
        const acc_t* from = input.data + offset + copy.from;
        // Whole vectors, the last one overlapping: a row of the map ends anywhere.
        for (int64_t i = 0; copy.count >= G::kLanes && i < copy.count; i += G::kLanes) {
          const int64_t x = std::min<int64_t>(i, copy.count - G::kLanes);
          store_vector(at + x, load_vector<typename G::vec>(from + x));
        }
        for (int64_t i = 0; copy.count < G::kLanes && i < copy.count; ++i) {
          at[i] = from[i];
        }
      }
    }
  }

  // line[stride * c + u] = rows[u][c] + add.
  SEGKERNELS_INLINE void interleave(const acc_t* rows, int64_t step, acc_t add, acc_t* to) const {
    if (p.stride_w == 2) {  // the usual case, which a known stride makes vectors of
      const acc_t* other = rows + step;
      for (int64_t c = 0; c < kCols; ++c) {
        to[2 * c] = rows[c] + add;
        to[2 * c + 1] = other[c] + add;
      }
      return;
    }
    for (int64_t u = 0; u < p.stride_w; ++u) {
      for (int64_t c = 0; c < kCols; ++c) {
        to[c * p.stride_w + u] = rows[u * step + c] + add;
      }
    }
  }

  // Where the output goes. Half types go through `store`, which converts `count` values and writes them at `offset`.
  struct Target {
    acc_t* data;
    const acc_t* bias;  // [out_channels], or null
    void (*store)(const acc_t* from, int64_t count, void* data, int64_t offset);
    void* half_data;
  };

  SEGKERNELS_INLINE void store_unit(int64_t unit, const std::vector<Run>& runs, const acc_t* sums, acc_t* buffer,
                                    const Target& target) const {
    for (int64_t e = 0; e < lines; ++e) {
      const Line& at = line_table[unit * lines + e];
      if (at.channel >= p.out_channels) {
        continue;
      }
      const acc_t add = target.bias ? target.bias[at.channel] : acc_t(0);
      const acc_t* rows = sums + e * (rows_mixed ? p.stride_w : 1) * kCols;
      const int64_t step = rows_mixed ? kCols : G::kTile;
      const bool whole = runs.size() == 1 && runs[0].pixels == kCols * p.stride_w;
      if (whole && !target.store && runs[0].i * p.stride_h + at.r < p.out_h) {
        interleave(rows, step, add, target.data + runs[0].offset + at.offset);
        continue;
      }
      interleave(rows, step, add, buffer);
      for (const Run& run : runs) {
        const acc_t* from = buffer + run.column * p.stride_w;
        const int64_t offset = run.offset + at.offset;
        if (run.i * p.stride_h + at.r >= p.out_h) {
          continue;
        }
        if (target.store) {
          target.store(from, run.pixels, target.half_data, offset);
        } else {
          for (int64_t x = 0; x < run.pixels; ++x) {
            target.data[offset + x] = from[x];
          }
        }
      }
    }
  }

  // The output's lines come into the cache while their sums are made.
  SEGKERNELS_INLINE void prefetch_unit(int64_t unit, const std::vector<Run>& runs, const acc_t* output) const {
    constexpr int64_t kLine = 64 / sizeof(acc_t);
    for (int64_t e = 0; e < lines; ++e) {
      const Line& at = line_table[unit * lines + e];
      for (const Run& run : runs) {
        for (int64_t x = 0; x < run.pixels; x += kLine) {
          __builtin_prefetch(output + run.offset + at.offset + x, 1);
        }
      }
    }
  }

  struct Block {
    const acc_t* weight;  // [unit][tile][segment][depth][kRows]
    const char* ahead;    // what the next group of panels will read
    int64_t ahead_step;   // bytes from channel to channel
    int64_t depth;
    bool first, last;
  };

  // The input of the next group comes into the cache bit by bit, one of its panels with each of this group's.
  SEGKERNELS_INLINE void prefetch_input(const Block& block, int64_t unit) const {
    for (int64_t k = block.depth * unit / units; k < block.depth * (unit + 1) / units; ++k) {
      __builtin_prefetch(block.ahead + k * block.ahead_step);
      __builtin_prefetch(block.ahead + k * block.ahead_step + 64);
    }
  }

  SEGKERNELS_INLINE void prefetch_sums(const acc_t* sums) const {
    for (int64_t i = 0; i < tiles * G::kTile; i += 64 / sizeof(acc_t)) {
      __builtin_prefetch(sums + i, 1);
    }
  }

  // Units [begin, end) of one panel. `sums` keeps the tiles of all units between two blocks.
  SEGKERNELS_CLONES void multiply(const Block& block, const acc_t* panel, const std::vector<Run>& runs, int64_t begin,
                                  int64_t end, acc_t* sums, acc_t* buffer, const Target& target) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      prefetch_input(block, unit);
      acc_t* unit_sums = sums + (blocks == 1 ? 0 : unit * tiles * G::kTile);
      if (!block.first) {
        prefetch_sums(unit_sums);
      }
      if (block.last && target.data && unit + 1 < end) {
        prefetch_unit(unit + 1, runs, target.data);
      }
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const Seen& at = seen[unit * tiles + tile];
        const acc_t* a = block.weight + (unit * tiles + tile) * segments * block.depth * kRows;
        typename G::Sums total = {};
        for (int64_t wy = 0; wy < v.window; ++wy) {
          for (int64_t wx = 0; wx < h.window; ++wx, a += block.depth * kRows) {
            const acc_t* b = panel + (at.y - wy) * block.depth * wide + at.x - wx;
            const auto load = [a](int r, int64_t k) SEGKERNELS_INLINE_LAMBDA { return a[k * kRows + r]; };
            G::add_products(block.depth, load, b, total, wide);
          }
        }
        G::store_tile(total, unit_sums + tile * G::kTile, !block.first);
      }
      if (block.last) {
        store_unit(unit, runs, unit_sums, buffer, target);
      }
    }
  }

  template <typename T>
  void forward(const T* input, const acc_t* weight, const acc_t* bias, T* output) const {
    Source source{nullptr, nullptr, input, sizeof(T)};
    Target target{nullptr, bias, nullptr, output};
    if constexpr (std::is_same_v<T, acc_t>) {
      source.data = input;
      target.data = output;
    } else {
      source.load = [](const void* data, int64_t offset, int64_t count, acc_t* to) {
        load_values(static_cast<const T*>(data) + offset, 1, count, to);
      };
      target.store = [](const acc_t* from, int64_t count, void* data, int64_t offset) {
        store_values(from, 1, count, static_cast<T*>(data) + offset);
      };
    }
    multiply_all(source, pack_weight(weight), target);
  }

  void multiply_all(const Source& input, const Scratch<acc_t>& packed, const Target& target) const {
    const int64_t unit_values = tiles * G::kTile;
    const int64_t chunk = std::max<int64_t>(1, kChunkRows / (tiles * kRows));
    parallel_items(G::col_panels(positions()), units * tiles * kRows * p.in_channels, [&](int64_t begin, int64_t end) {
      const int64_t panels = std::min(kPanels, end - begin);
      Scratch<acc_t> b(panels * v.neighbours() * channel_block * wide);
      const int64_t sums_step = blocks == 1 ? 0 : units * unit_values;  // one block's sums need not be kept
      Scratch<acc_t> sums(std::max(unit_values, panels * sums_step));
      Scratch<acc_t> buffer(kCols * p.stride_w);
      std::vector<std::vector<Run>> group_runs(panels);
      for (int64_t first = begin; first < end; first += panels) {
        const int64_t count = std::min(panels, end - first);
        for (int64_t i = 0; i < count; ++i) {
          group_runs[i] = runs(first + i);
        }
        for (int64_t k0 = 0; k0 < p.in_channels; k0 += channel_block) {
          const int64_t depth = std::min(channel_block, p.in_channels - k0);
          const int64_t step = v.neighbours() * depth * wide;
          const int64_t from = k0 * p.in_plane();
          std::fill_n(b.get(), count * step, acc_t(0));
          pack_input(input, from, copies(first, count, depth), depth, b.get());
          for (int64_t unit = 0; unit < units; unit += chunk) {
            for (int64_t i = 0; i < count; ++i) {
              const Block block{packed.get() + packed_before(k0),
                                input.bytes(from + in_offset(std::min(first + count + i, end - 1))),
                                p.in_plane() * input.value_bytes,
                                depth,
                                k0 == 0,
                                k0 + depth == p.in_channels};
              multiply(block, b.get() + i * step, group_runs[i], unit, std::min(units, unit + chunk),
                       sums.get() + i * sums_step, buffer.get(), target);
            }
          }
        }
      }
    });
  }
};

}  // namespace segkernels
