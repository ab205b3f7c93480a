// Softmax over logits that are upsampled bilinearly on the way, one dimension at a time: within a block of output
// columns a source row is stretched once, an output row blends two of them, and vectors run over its pixels. The
// gradient goes the same way back: it is added up in stretched rows, which are shrunk once each.
#pragma once

#include "../common/bilinear.h"
#include "softmax_planes.h"

namespace segkernels {
namespace {

// Output columns of a block: what it keeps of every class should stay in L1.
inline int64_t block_columns(int64_t classes, int64_t width) {
  const int64_t wanted = std::clamp<int64_t>(1536 / classes / kBlockLanes * kBlockLanes, 16, 64);
  const int64_t blocks = std::max<int64_t>(1, (width + wanted / 2) / wanted);
  return padded((width + blocks - 1) / blocks);
}

// Where output columns come from, eight at a time: column base[x / 8] + shift[x] of the source, and the one after it.
// The source has a copy of its last column behind it.
template <typename T>
struct UpsampledColumns {
  int64_t block, blocks;                   // columns of a block, and how many there are
  std::vector<int64_t> base;               // [W / 8]
  std::vector<int32_t> shift;              // [W], in [0, 7]
  std::vector<T> low_weight, high_weight;  // [W]

  explicit UpsampledColumns(const SoftmaxParams& p)
      : block(block_columns(p.classes, p.out_w)), blocks((p.out_w + block - 1) / block) {
    const int64_t width = blocks * block;
    const BilinearAxis<T> axis = bilinear_axis<T>(p.in_w, p.out_w, p.align_corners);
    for (int64_t x = 0; x < width; ++x) {
      const BilinearTap<T> tap = axis.tap(std::min(x, p.out_w - 1));
      if (x % kBlockLanes == 0) {
        base.push_back(tap.low);
      }
      // Rounding may make it 8: with a weight of (almost) 1, which the other neighbour then takes.
      const bool beyond = tap.low - base.back() == kBlockLanes;
      shift.push_back(static_cast<int32_t>(tap.low - base.back() - beyond));
      low_weight.push_back(beyond || x >= p.out_w ? T(0) : tap.low_weight);
      high_weight.push_back(x >= p.out_w ? T(0) : (beyond ? T(1) : tap.high_weight));
    }
  }
};

// Rows [begin, end) of the output that read source row `source` first.
struct RowRange {
  int64_t begin, end;
};

template <typename T>
std::vector<RowRange> source_rows(const SoftmaxParams& p) {
  std::vector<RowRange> ranges(p.in_h, RowRange{0, 0});
  for (int64_t y = 0; y < p.out_h; ++y) {
    RowRange& range = ranges[bilinear_axis<T>(p.in_h, p.out_h, p.align_corners).tap(y).low];
    range.begin = range.end == 0 ? y : range.begin;
    range.end = y + 1;
  }
  return ranges;
}

// row[shift[0]], row[shift[1]], ...
SEGKERNELS_INLINE f32x8 pick(const float* row, const int32_t* shift, f32x8 /*type*/) {
  const f32x8 values = load_vector<f32x8>(row);
  const i32x8 lanes = load_vector<i32x8>(shift);
#if defined(__clang__)
  f32x8 picked;
  for (int k = 0; k < 8; ++k) {
    picked[k] = values[lanes[k]];
  }
  return picked;
#else
  return __builtin_shuffle(values, lanes);
#endif
}
SEGKERNELS_INLINE double pick(const double* row, const int32_t* shift, double /*type*/) {
  return row[*shift];
}

// Block b of a source row [C, width] at the output's columns: to [C, block].
template <typename T>
SEGKERNELS_CLONES void stretch(const T* row, int64_t width, int64_t classes, const UpsampledColumns<T>& columns,
                               int64_t b, T* to) {
  using V = typename Lanes<T>::vector;
  const int64_t block = columns.block;
  const int64_t* base = columns.base.data();
  for (int64_t i = 0; i < block; i += Lanes<T>::count) {
    const int64_t x = b * block + i;
    const int32_t* shift = columns.shift.data() + x;
    const V low_weight = load_vector<V>(columns.low_weight.data() + x);
    const V high_weight = load_vector<V>(columns.high_weight.data() + x);
    const T* from = row + base[x / kBlockLanes];
    for (int64_t c = 0; c < classes; ++c) {
      const V low = pick(from + c * width, shift, V{});
      const V high = pick(from + c * width + 1, shift, V{});
      store_vector(to + c * block + i, low * low_weight + high * high_weight);
    }
  }
}

SEGKERNELS_INLINE void transpose(f32x8* rows) {
  f32x8 pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = __builtin_shufflevector(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = __builtin_shufflevector(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    quads[i] = __builtin_shufflevector(pairs[i], pairs[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    quads[i + 1] = __builtin_shufflevector(pairs[i], pairs[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    quads[i + 2] = __builtin_shufflevector(pairs[i + 1], pairs[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    quads[i + 3] = __builtin_shufflevector(pairs[i + 1], pairs[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = __builtin_shufflevector(quads[i], quads[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = __builtin_shufflevector(quads[i], quads[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
SEGKERNELS_INLINE void transpose(double* /*row*/) {}

// The transpose of stretch: adds block b, `from` [padded C, block], to row [w + 1, padded C].
template <typename T>
SEGKERNELS_CLONES void shrink(const T* from, int64_t classes, const UpsampledColumns<T>& columns, int64_t b, T* row) {
  using V = typename Lanes<T>::vector;
  constexpr int64_t kSide = Lanes<T>::count;
  const int64_t block = columns.block;
  const int64_t width = padded(classes);
  for (int64_t i = 0; i < block; i += kSide) {
    const int64_t x = b * block + i;
    const T* low_weight = columns.low_weight.data() + x;
    const T* high_weight = columns.high_weight.data() + x;
    const int32_t* shift = columns.shift.data() + x;
    T* const first = row + columns.base[x / kBlockLanes] * width;
    for (int64_t c = 0; c < width; c += kSide) {
      V pixels[kSide];
      for (int64_t k = 0; k < kSide; ++k) {
        pixels[k] = load_vector<V>(from + (c + k) * block + i);
      }
      transpose(pixels);
      for (int64_t k = 0; k < kSide;) {
        const int32_t column = shift[k];
        V low{}, high{};
        for (; k < kSide && shift[k] == column; ++k) {
          low += pixels[k] * low_weight[k];
          high += pixels[k] * high_weight[k];
        }
        T* const to = first + column * width + c;
        store_vector(to, load_vector<V>(to) + low);
        store_vector(to + width, load_vector<V>(to + width) + high);
      }
    }
  }
}

// One output row of a block: tile = low * low_weight + high * high_weight and its largest logits. Where `valid` is
// given, logits of other pixels are 0.
template <typename T>
SEGKERNELS_CLONES void blend_logits(const T* low, const T* high, BilinearTap<T> tap, int64_t classes, int64_t step,
                                    int64_t count, const T* valid, T* tile, T* max) {
  using V = typename Lanes<T>::vector;
  const V low_weight = V{} + tap.low_weight;
  const V high_weight = V{} + tap.high_weight;
  for (int64_t i = 0; i < count; i += Lanes<T>::count) {
    V most = V{} - std::numeric_limits<T>::infinity();
    for (int64_t at = i; at < classes * step; at += step) {
      V x = load_vector<V>(low + at) * low_weight + load_vector<V>(high + at) * high_weight;
      if (valid) {
        x = load_vector<V>(valid + i) > V{} ? x : V{};
      }
      store_vector(tile + at, x);
      most = x > most ? x : most;
    }
    store_vector(max + i, most);
  }
}

// Adds the gradients of one output row of a block to those of the stretched rows that it was blended from; the two may
// be the same.
template <typename T>
SEGKERNELS_CLONES void spread_gradients(const T* tile, const PixelBlock<T>& block, const T* slope, const T* weights,
                                        BilinearTap<T> tap, int64_t classes, int64_t step, T* low, T* high) {
  using V = typename Lanes<T>::vector;
  for (int64_t i = 0; i < padded(block.count); i += Lanes<T>::count) {
    const V inverse = load_vector<V>(block.inverse + i);
    const V shift = inverse * load_vector<V>(block.shift + i);
    const V smoothing = load_vector<V>(block.smoothing + i);
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t at = c * step + i;
      V value = load_vector<V>(tile + at) * (slope ? inverse * slope[c] + shift : shift);
      if (weights) {
        value -= smoothing * weights[c];
      }
      store_vector(low + at, load_vector<V>(low + at) + value * tap.low_weight);
      store_vector(high + at, load_vector<V>(high + at) + value * tap.high_weight);
    }
  }
  for (int64_t i = 0; i < block.count; ++i) {
    if (block.bins[i] < classes) {
      const int64_t at = block.bins[i] * step + i;
      low[at] += block.extra[i] * tap.low_weight;
      high[at] += block.extra[i] * tap.high_weight;
    }
  }
}

// Consecutive source rows, an item of parallel work: their number depends on the shape only.
constexpr int64_t kBands = 8;  // of a sample

inline int64_t band_rows(const SoftmaxParams& p) {
  return (p.in_h + kBands - 1) / kBands;
}

// Walks the output rows of one band, one block of columns after the other.
template <typename T>
class BandWalk {
 public:
  BandWalk(const SoftmaxParams& p, const Planes& inputs, const Labels& labels)
      : p_(p),
        inputs_(inputs),
        labels_(labels),
        columns_(p),
        ranges_(source_rows<T>(p)),
        source_((band_rows(p) + 1) * row_size()),
        low_(p.classes * columns_.block),
        high_(p.classes * columns_.block),
        block_(p.classes, columns_.block) {}

  const UpsampledColumns<T>& columns() const {
    return columns_;
  }

  // Calls f(block, pixel, source, tap) on every block of softmax values whose first source row is one of [begin, end),
  // after row(b, source) at the beginning of each source row, also at `end`.
  template <typename Block, typename Row>
  void rows(int64_t n, int64_t begin, int64_t end, const ClassValues<T>& values, bool smoothed, const Block& f,
            const Row& row) {
    for (int64_t y = begin; y <= std::min(end, p_.in_h - 1); ++y) {
      for (int64_t c = 0; c < p_.classes; ++c) {
        T* const row = source_.data() + (y - begin) * row_size() + c * width();
        load_block(inputs_, n, c, y * p_.in_w, p_.in_w, T(0), true, row);
        std::fill(row + p_.in_w, row + width(), row[p_.in_w - 1]);
      }
    }
    for (int64_t b = 0; b < columns_.blocks; ++b) {
      stretch_row(0, b, high_);
      for (int64_t source = begin; source < end; ++source) {
        row(b, source);
        std::swap(low_, high_);
        stretch_row(std::min(source + 1, p_.in_h - 1) - begin, b, high_);
        for (int64_t y = ranges_[source].begin; y < ranges_[source].end; ++y) {
          const BilinearTap<T> tap = bilinear_axis<T>(p_.in_h, p_.out_h, p_.align_corners).tap(y);
          const int64_t pixel = n * p_.pixels() + y * p_.out_w + b * columns_.block;
          const int64_t count = std::min(columns_.block, p_.out_w - b * columns_.block);
          PixelBlock<T>& pixels = block_.pixels;
          pixels.load(labels_, pixel, count, static_cast<int32_t>(p_.classes), values);
          blend_logits(low_.data(), high_.data(), tap, p_.classes, columns_.block, padded(count),
                       pixels.masked ? pixels.valid : nullptr, block_.tile.data(), pixels.max);
          block_.exponentiate(p_.classes, values, smoothed);
          f(block_, pixel, source, tap);
        }
      }
      row(b, end);
    }
  }

 private:
  // Of a source row, [C, width]: eight values can be read behind its last column. An odd number of vectors, so that the
  // classes of one column do not evict each other from L1.
  int64_t width() const {
    return (padded(p_.in_w + kBlockLanes) / kBlockLanes | 1) * kBlockLanes;
  }
  int64_t row_size() const {
    return p_.classes * width();
  }
  void stretch_row(int64_t row, int64_t b, std::vector<T>& to) {
    stretch(source_.data() + row * row_size(), width(), p_.classes, columns_, b, to.data());
  }

  const SoftmaxParams& p_;
  const Planes& inputs_;
  const Labels& labels_;
  UpsampledColumns<T> columns_;
  std::vector<RowRange> ranges_;
  std::vector<T> source_;      // [rows, C, width]
  std::vector<T> low_, high_;  // [C, block] stretched
  PlaneBlock<T> block_;
};

}  // namespace
}  // namespace segkernels
