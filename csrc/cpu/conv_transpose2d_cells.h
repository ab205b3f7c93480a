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

namespace segkernels {

inline bool cells_apply(const ConvTranspose2dParams& p) {
  return p.kernel_h % p.stride_h == 0 && p.kernel_w % p.stride_w == 0 && p.stride_h * p.stride_w > 1 && p.taps() > 0 &&
         p.dilation_h == 1 && p.dilation_w == 1 && p.groups == 1;
}

// One axis of the cells.
struct CellAxis {
  int64_t stride, padding, window;
  int64_t first, last;  // neighbours that some phase sees, relative to the cell
  int64_t cells;

  CellAxis(int64_t kernel, int64_t stride_, int64_t padding_, int64_t out)
      : stride(stride_),
        padding(padding_),
        window(kernel / stride_),
        first(padding_ / stride_ - kernel / stride_ + 1),
        last((stride_ - 1 + padding_) / stride_),
        cells((out + stride_ - 1) / stride_) {}

  // The neighbour, counted from `first`, and the tap through which a phase sees element w of its window.
  int64_t neighbour(int64_t phase, int64_t w) const {
    return (phase + padding) / stride - w - first;
  }
  int64_t tap(int64_t phase, int64_t w) const {
    return (phase + padding) % stride + w * stride;
  }
  int64_t neighbours() const {
    return last - first + 1;
  }
};

template <typename acc_t>
struct Cells {
  using G = Gemm<acc_t>;
  static constexpr int64_t kRows = G::kRows;
  static constexpr int64_t kCols = G::kCols;
  static constexpr int64_t kPanels = 4;                       // of columns, packed together: longer runs of the input
  static constexpr int64_t kChunkRows = 256;                  // whose weights stay in L2 for all panels of a group
  static constexpr int64_t kPanelValues = kCols * G::kDepth;  // of a block of channels in L1

  // A row of the output that a unit makes: an out channel and a row r of its cells. Its first pixel in an image.
  struct Line {
    int64_t channel, r, offset;
  };
  // The neighbour that a tile sees through the first element of its window.
  struct Seen {
    int64_t y, x;
  };

  const ConvTranspose2dParams& p;
  const CellAxis v, h;
  const int64_t border;  // zeros between two rows of cells
  const int64_t pitch;   // of the rows of cells
  const int64_t wide;    // columns of a panel with its neighbours
  const bool
      rows_mixed;       // all phases see the same neighbours: rows are (out channel, r, u), else ((r, u), out channel)
  const int64_t tiles;  // row panels that make whole rows of the output
  const int64_t lines;  // rows of the output per unit
  const int64_t units;
  const int64_t segments;
  const int64_t channel_block;  // in channels per block of depth
  const int64_t blocks;
  // Divisions are dear in the inner loops.
  std::vector<Line> line_table;  // [units][lines]
  std::vector<Seen> seen;        // [units][tiles]

  explicit Cells(const ConvTranspose2dParams& params)
      : p(params),
        v(p.kernel_h, p.stride_h, p.pad_h, p.out_h),
        h(p.kernel_w, p.stride_w, p.pad_w, p.out_w),
        border(std::max<int64_t>({0, -h.first, h.cells + h.last - p.in_w})),
        pitch(p.in_w + border),
        wide((kCols + h.neighbours() - 1 + G::kLanes - 1) / G::kLanes * G::kLanes),
        rows_mixed(p.pad_h % p.stride_h == 0 && p.pad_w % p.stride_w == 0),
        tiles(rows_mixed ? whole_rows_panels(p.stride_w) : p.stride_w),
        lines(tiles * kRows / p.stride_w),
        units(rows_mixed ? (p.out_channels * p.stride_h + lines - 1) / lines
                         : p.stride_h * G::row_panels(p.out_channels)),
        segments(v.window * h.window),
        channel_block(balanced(p.in_channels, kPanelValues / (v.window * wide))),
        blocks((p.in_channels + channel_block - 1) / channel_block) {
    for (int64_t unit = 0; unit < units; ++unit) {
      for (int64_t e = 0; e < lines; ++e) {
        const Row at = rows_mixed ? row(unit, e * p.stride_w / kRows, e * p.stride_w % kRows) : row(unit, 0, e);
        line_table.push_back({at.channel, at.r, (at.channel * p.out_h + at.r) * p.out_w});
      }
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const Row at = row(unit, tile, 0);
        seen.push_back({v.neighbour(at.r, 0), h.neighbour(at.u, 0)});
      }
    }
  }

  static int64_t whole_rows_panels(int64_t stride) {
    int64_t panels = 1;
    while (panels * kRows % stride != 0) {
      ++panels;
    }
    return panels;
  }
  // The size of the blocks when `count` is cut into as few as possible of at most `most`, evenly.
  static int64_t balanced(int64_t count, int64_t most) {
    const int64_t parts = std::max<int64_t>(1, (count + most - 1) / std::max<int64_t>(1, most));
    return std::max<int64_t>(1, (count + parts - 1) / parts);
  }

  int64_t positions() const {
    return p.batch * v.cells * pitch;
  }
  // Packed weights of a block before channel k0 hold so many values.
  int64_t packed_before(int64_t k0) const {
    return units * tiles * segments * k0 * kRows;
  }

  struct Row {
    int64_t channel, r, u;
  };
  // Row of a tile in a unit; channels past the last one are zeros.
  Row row(int64_t unit, int64_t tile, int64_t row) const {
    if (!rows_mixed) {
      const int64_t panels = G::row_panels(p.out_channels);
      return {unit % panels * kRows + row, unit / panels, tile};
    }
    const int64_t m = (unit * tiles + tile) * kRows + row;
    const int64_t line = m / p.stride_w;
    return {line / p.stride_h, line % p.stride_h, m - line * p.stride_w};
  }

  template <typename T>
  static SEGKERNELS_INLINE void copy_rows(const T* from, const int64_t* place, acc_t* to) {
    if (place[0] >= 0 && place[kRows - 1] == place[0] + kRows - 1) {
      for (int64_t r = 0; r < kRows; ++r) {
        to[r] = to_compute<acc_t>(from[place[0] + r]);
      }
      return;
    }
    for (int64_t r = 0; r < kRows; ++r) {
      to[r] = place[r] < 0 ? acc_t(0) : to_compute<acc_t>(from[place[r]]);
    }
  }

  // [block][unit][tile][segment][channel][kRows].
  template <typename T>
  Scratch<acc_t> pack_weight(const T* weight) const {
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
            const T* from = weight + (k0 + k) * step;
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

  // `count` values from the input, relative to an image's channel, to a packed panel's channel.
  struct Copy {
    int64_t from, to, count;
  };

  // What panels [first, first + panels) read; panels lie [panel][vertical neighbour][channel of `depth`][wide].
  std::vector<Copy> copies(int64_t first, int64_t panels, int64_t depth) const {
    std::vector<Copy> list;
    // Without a border the rows of an image follow each other.
    const bool joined = border == 0 && v.neighbours() == 1 && v.first == 0 && v.cells == p.in_h;
    const int64_t width = joined ? p.in_plane() : p.in_w;
    const int64_t row_pitch = joined ? width : pitch;
    const int64_t rows = joined ? 1 : v.cells;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t begin = (first + panel) * kCols;
      const int64_t past = std::min(begin + kCols, positions()) + h.last;
      for (int64_t q = begin + h.first; q < past;) {
        // The last row reads into its border, and so does the first.
        const int64_t line = q < 0 ? -1 : q / row_pitch;
        const int64_t x = q - line * row_pitch;
        const int64_t count = std::min(past - q, row_pitch - x);
        const int64_t n = line / rows;
        const int64_t i = line - n * rows;
        for (int64_t d = 0; d < v.neighbours() && line >= 0 && n < p.batch && x < width; ++d) {
          const int64_t y = i + v.first + d;
          if (y >= 0 && y < p.in_h) {
            list.push_back({(n * p.in_channels * p.in_h + y) * p.in_w + x,
                            (panel * v.neighbours() + d) * depth * wide + q - begin - h.first,
                            std::min(count, width - x)});
          }
        }
        q += count;
      }
    }
    return list;
  }

  // Where the first cell of a panel stands in the input, in channel 0.
  int64_t in_offset(int64_t panel) const {
    const int64_t line = panel * kCols / pitch;
    const int64_t n = line / v.cells;
    return (n * p.in_channels * p.in_h + std::min(line - n * v.cells, p.in_h - 1)) * p.in_w + panel * kCols % pitch;
  }

  template <typename T>
  SEGKERNELS_CLONES static void pack_input(const T* input, int64_t channel_step, const std::vector<Copy>& list,
                                           int64_t depth, int64_t wide, acc_t* to) {
    for (int64_t k = 0; k < depth; ++k, input += channel_step, to += wide) {
      for (const Copy& copy : list) {
        const T* from = input + copy.from;
        acc_t* at = to + copy.to;
        if constexpr (std::is_same_v<T, acc_t>) {
          // Whole vectors, the last one overlapping: a row of the map ends anywhere.
          if (copy.count >= G::kLanes) {
            for (int64_t i = 0; i < copy.count; i += G::kLanes) {
              const int64_t x = std::min<int64_t>(i, copy.count - G::kLanes);
              store_vector(at + x, load_vector<typename G::vec>(from + x));
            }
            continue;
          }
        }
        for (int64_t i = 0; i < copy.count; ++i) {
          at[i] = to_compute<acc_t>(from[i]);
        }
      }
    }
  }

  // Cells of one row inside a panel.
  struct Run {
    int64_t column, pixels;  // its first column, and how many pixels of the output follow from it
    int64_t i;               // its row of cells
    int64_t offset;          // its first pixel in the output, in channel 0 and phase 0
  };
  std::vector<Run> runs(int64_t panel) const {
    std::vector<Run> list;
    const int64_t past = std::min((panel + 1) * kCols, positions());
    for (int64_t q = panel * kCols; q < past;) {
      const int64_t line = q / pitch;
      const int64_t j = q - line * pitch;
      const int64_t count = std::min(past - q, pitch - j);
      const int64_t n = line / v.cells;
      const int64_t i = line - n * v.cells;
      const int64_t x = j * p.stride_w;
      const int64_t pixels = std::min(count * p.stride_w, p.out_w - x);
      if (pixels > 0) {
        list.push_back({q - panel * kCols, pixels, i, (n * p.out_channels * p.out_h + i * p.stride_h) * p.out_w + x});
      }
      q += count;
    }
    return list;
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
    const acc_t* bias;  // [out_channels]
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
      const acc_t add = target.bias[at.channel];
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
  void forward(const T* input, const T* weight, const T* bias, T* output) const {
    const auto packed = pack_weight(weight);
    std::vector<acc_t> add(p.out_channels);
    if (bias) {
      load_values(bias, 1, p.out_channels, add.data());
    }
    Target target{nullptr, add.data(), nullptr, output};
    if constexpr (std::is_same_v<T, acc_t>) {
      target.data = output;
    } else {
      target.store = [](const acc_t* from, int64_t count, void* data, int64_t offset) {
        store_values(from, 1, count, static_cast<T*>(data) + offset);
      };
    }
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
          const T* from = input + k0 * p.in_plane();
          std::fill_n(b.get(), count * step, acc_t(0));
          pack_input(from, p.in_plane(), copies(first, count, depth), depth, wide, b.get());
          for (int64_t unit = 0; unit < units; unit += chunk) {
            for (int64_t i = 0; i < count; ++i) {
              const T* ahead = from + in_offset(std::min(first + count + i, end - 1));
              const Block block{packed.get() + packed_before(k0),
                                reinterpret_cast<const char*>(ahead),
                                p.in_plane() * static_cast<int64_t>(sizeof(T)),
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
