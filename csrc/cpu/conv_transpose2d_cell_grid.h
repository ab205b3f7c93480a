// Where the cells of a transposed convolution stand (see conv_transpose2d_cells.h): in panels of columns, in the input
// and in the output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/conv_transpose2d.h"

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

struct CellGrid {
  static constexpr int64_t kRows = 4;  // of a tile

  // A row of the output that a unit makes: an out channel and a row r of its cells. Its first pixel in an image.
  struct Line {
    int64_t channel, r, offset;
  };
  // The neighbour that a tile sees through the first element of its window.
  struct Seen {
    int64_t y, x;
  };

  const ConvTranspose2dParams& p;
  const int64_t cols;  // of a panel
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

  // Panels of `columns`, a multiple of `lanes`; with its neighbours, one block of channels has at most `values` of
  // them.
  CellGrid(const ConvTranspose2dParams& params, int64_t columns, int64_t lanes, int64_t values)
      : p(params),
        cols(columns),
        v(p.kernel_h, p.stride_h, p.pad_h, p.out_h),
        h(p.kernel_w, p.stride_w, p.pad_w, p.out_w),
        border(std::max<int64_t>({0, -h.first, h.cells + h.last - p.in_w})),
        pitch(p.in_w + border),
        wide((cols + h.neighbours() - 1 + lanes - 1) / lanes * lanes),
        rows_mixed(p.pad_h % p.stride_h == 0 && p.pad_w % p.stride_w == 0),
        tiles(rows_mixed ? whole_rows_panels(p.stride_w) : p.stride_w),
        lines(tiles * kRows / p.stride_w),
        units(rows_mixed ? (p.out_channels * p.stride_h + lines - 1) / lines : p.stride_h * row_panels()),
        segments(v.window * h.window),
        channel_block(balanced(p.in_channels, values / (v.window * wide))),
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

  int64_t row_panels() const {
    return (p.out_channels + kRows - 1) / kRows;
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
      const int64_t panels = row_panels();
      return {unit % panels * kRows + row, unit / panels, tile};
    }
    const int64_t m = (unit * tiles + tile) * kRows + row;
    const int64_t line = m / p.stride_w;
    return {line / p.stride_h, line % p.stride_h, m - line * p.stride_w};
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
      const int64_t begin = (first + panel) * cols;
      const int64_t past = std::min(begin + cols, positions()) + h.last;
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
    const int64_t line = panel * cols / pitch;
    const int64_t n = line / v.cells;
    return (n * p.in_channels * p.in_h + std::min(line - n * v.cells, p.in_h - 1)) * p.in_w + panel * cols % pitch;
  }

  // Cells of one row inside a panel.
  struct Run {
    int64_t column, pixels;  // its first column, and how many pixels of the output follow from it
    int64_t i;               // its row of cells
    int64_t offset;          // its first pixel in the output, in channel 0 and phase 0
  };
  std::vector<Run> runs(int64_t panel) const {
    std::vector<Run> list;
    const int64_t past = std::min((panel + 1) * cols, positions());
    for (int64_t q = panel * cols; q < past;) {
      const int64_t line = q / pitch;
      const int64_t j = q - line * pitch;
      const int64_t count = std::min(past - q, pitch - j);
      const int64_t n = line / v.cells;
      const int64_t i = line - n * v.cells;
      const int64_t x = j * p.stride_w;
      const int64_t pixels = std::min(count * p.stride_w, p.out_w - x);
      if (pixels > 0) {
        list.push_back({q - panel * cols, pixels, i, (n * p.out_channels * p.out_h + i * p.stride_h) * p.out_w + x});
      }
      q += count;
    }
    return list;
  }
};

}  // namespace segkernels
