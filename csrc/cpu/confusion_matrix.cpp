// Confusion matrix on the CPU, from labels or straight from logits: per block of pixels the class of each is found,
// both labels become bins, and the pairs are counted. Labels that do not count get bins of their own behind the
// classes, so that the loops need no branch: bin C holds ignored labels, bin C + 1 those outside [0, C).
#include <torch/csrc/stable/library.h>

#include <bit>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../common/bilinear.h"
#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/joint_histogram.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace segkernels {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr int64_t kBlock = 1024;  // pixels whose labels are held on the stack
constexpr int64_t kCacheLine = 64;
constexpr int64_t kTile = 64;  // pixels of channels_last logits that are transposed at once

// Neighbouring output pixels that share their two source columns and are computed as one vector.
template <typename acc_t>
constexpr int64_t kLanes = 32 / sizeof(acc_t);

template <typename label_t>
struct LabelRule {
  int32_t classes;
  label_t ignored;
  int32_t ignored_bin;
};

template <typename label_t>
LabelRule<label_t> label_rule(int64_t classes, std::optional<int64_t> ignore_index) {
  const int32_t count = static_cast<int32_t>(classes);
  if (ignore_index.has_value() && static_cast<int64_t>(static_cast<label_t>(*ignore_index)) == *ignore_index) {
    return {count, static_cast<label_t>(*ignore_index), count};
  }
  return {count, label_t(0), 0};  // nothing is ignored: label 0 keeps bin 0
}

template <typename label_t>
SEGKERNELS_CLONES void label_bins(const label_t* labels, int64_t count, LabelRule<label_t> rule, int32_t* bins) {
  using wide_t = std::conditional_t<sizeof(label_t) == 8, uint64_t, uint32_t>;
  const uint32_t classes = static_cast<uint32_t>(rule.classes);
  const int32_t outside = rule.classes + 1;
  int64_t i = 0;
  if constexpr (sizeof(label_t) == 8) {
    // 64-bit comparisons and narrowing are slow before AVX-512: eight labels are parted into low and high words.
    typedef int32_t words_t __attribute__((vector_size(32)));
    typedef uint32_t unsigned_t __attribute__((vector_size(32)));
    const int32_t ignored_low = static_cast<int32_t>(rule.ignored);
    const int32_t ignored_high = static_cast<int32_t>(rule.ignored >> 32);
    for (; i + 8 <= count; i += 8) {
      // The next block: two tensors are read in turns, and the hardware's prefetcher starts anew at each.
      __builtin_prefetch(labels + i + kBlock);
      words_t a, b;
      __builtin_memcpy(&a, labels + i, sizeof(a));
      __builtin_memcpy(&b, labels + i + 4, sizeof(b));
      // In the order that two-operand shuffles of 128-bit lanes give; undone at the end.
      const words_t low = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
      const words_t high = __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
      const words_t inside = ((unsigned_t)low < classes) & (high == 0);
      const words_t ignored = (low == ignored_low) & (high == ignored_high);
      words_t bin = inside ? low : words_t{} + outside;
      bin = ignored ? words_t{} + rule.ignored_bin : bin;
      bin = __builtin_shufflevector(bin, bin, 0, 1, 4, 5, 2, 3, 6, 7);
      __builtin_memcpy(bins + i, &bin, sizeof(bin));
    }
  }
  for (; i < count; ++i) {
    const label_t label = labels[i];
    // Negative labels become huge.
    const bool inside = static_cast<wide_t>(label) < classes;
    const int32_t bin = inside ? static_cast<int32_t>(label) : outside;
    bins[i] = label == rule.ignored ? rule.ignored_bin : bin;
  }
}

template <typename F>
void dispatch_label(ScalarType dtype, const char* argument, F&& f) {
  switch (dtype) {
    case ScalarType::Long:
      return f.template operator()<int64_t>();
    case ScalarType::Int:
      return f.template operator()<int32_t>();
    case ScalarType::Short:
      return f.template operator()<int16_t>();
    case ScalarType::Char:
      return f.template operator()<int8_t>();
    case ScalarType::Byte:
    case ScalarType::Bool:
      return f.template operator()<uint8_t>();
    default:
      STD_TORCH_CHECK(false, "confusion_matrix: expected ", argument, " of an integer dtype, got ", dtype);
  }
}

// A dense tensor of labels of any integer dtype, read as bins.
class Labels {
 public:
  Labels(const Tensor& labels, const char* argument, int64_t classes, std::optional<int64_t> ignore_index)
      : dense_(torch::stable::contiguous(labels)), classes_(classes), ignore_index_(ignore_index) {
    dispatch_label(dense_.scalar_type(), argument, [&]<typename label_t>() { read_ = &Labels::read<label_t>; });
    data_ = dense_.const_data_ptr();
  }
  void bins(int64_t begin, int64_t count, int32_t* bins) const {
    (this->*read_)(begin, count, bins);
  }

 private:
  template <typename label_t>
  void read(int64_t begin, int64_t count, int32_t* bins) const {
    label_bins(static_cast<const label_t*>(data_) + begin, count, label_rule<label_t>(classes_, ignore_index_), bins);
  }

  Tensor dense_;
  const void* data_;
  int64_t classes_;
  std::optional<int64_t> ignore_index_;
  void (Labels::*read_)(int64_t, int64_t, int32_t*) const;
};

// Half types are compared as integers that order like them; NaN is the largest, as it is for torch.argmax.
template <typename scalar_t>
struct Order {
  using key_t = scalar_t;
  static SEGKERNELS_INLINE key_t key(scalar_t value) {
    return value;
  }
  // NaN beats every number, and the first NaN stays.
  static SEGKERNELS_INLINE bool greater(key_t a, key_t b) {
    return !(a <= b) & (b == b);
  }
};

template <typename half_t, int32_t kInfinity>
struct HalfOrder {
  using key_t = int32_t;
  static SEGKERNELS_INLINE key_t key(half_t value) {
    const int32_t magnitude = value.x & 0x7fff;
    const int32_t number = value.x & 0x8000 ? -magnitude : magnitude;
    return magnitude > kInfinity ? 0x7fff : number;
  }
  static SEGKERNELS_INLINE bool greater(key_t a, key_t b) {
    return a > b;
  }
};
template <>
struct Order<half> : HalfOrder<half, 0x7c00> {};
template <>
struct Order<bfloat16> : HalfOrder<bfloat16, 0x7f80> {};

template <typename scalar_t>
using key_t = typename Order<scalar_t>::key_t;

// Lowest class of the largest logit of each of up to kBlock pixels; class c of pixel i lies at logits[c * step + i].
template <typename scalar_t>
SEGKERNELS_CLONES void argmax_planes(const scalar_t* logits, int64_t classes, int64_t step, int64_t count,
                                     int32_t* bins) {
  using order = Order<scalar_t>;
  key_t<scalar_t> best[kBlock];
  for (int64_t i = 0; i < count; ++i) {
    best[i] = order::key(logits[i]);
    bins[i] = 0;
  }
  for (int64_t c = 1; c < classes; ++c) {
    const scalar_t* plane = logits + c * step;
    // The hardware's prefetcher starts anew in every plane.
    for (int64_t i = 0; c + 1 < classes && i < count; i += kCacheLine / sizeof(scalar_t)) {
      __builtin_prefetch(plane + step + i);
    }
    for (int64_t i = 0; i < count; ++i) {
      const key_t<scalar_t> value = order::key(plane[i]);
      const bool take = order::greater(value, best[i]);
      best[i] = take ? value : best[i];
      bins[i] = take ? static_cast<int32_t>(c) : bins[i];
    }
  }
}

// The same for channels_last, class c of pixel i at logits[i * classes + c].
template <typename scalar_t>
SEGKERNELS_CLONES void argmax_pixels(const scalar_t* logits, int64_t classes, int64_t count, int32_t* bins) {
  using order = Order<scalar_t>;
  for (int64_t start = 0; start < count; start += kTile) {
    const int64_t tile = std::min(kTile, count - start);
    const scalar_t* pixels = logits + start * classes;
    key_t<scalar_t> best[kTile];
    int32_t* bin = bins + start;
    for (int64_t i = 0; i < tile; ++i) {
      best[i] = order::key(pixels[i * classes]);
      bin[i] = 0;
    }
    for (int64_t c = 1; c < classes; ++c) {
      for (int64_t i = 0; i < tile; ++i) {
        const key_t<scalar_t> value = order::key(pixels[i * classes + c]);
        const bool take = order::greater(value, best[i]);
        best[i] = take ? value : best[i];
        bin[i] = take ? static_cast<int32_t>(c) : bin[i];
      }
    }
  }
}

// Up to kLanes neighbouring output columns between the same two source columns.
struct ColumnRun {
  int64_t begin, source;
};

template <typename acc_t>
struct Columns {
  std::vector<ColumnRun> runs;
  std::vector<acc_t> low_weight, high_weight;  // [W + kLanes]
};

template <typename acc_t>
Columns<acc_t> upsampled_columns(int64_t in_w, int64_t out_w) {
  Columns<acc_t> columns;
  columns.low_weight.resize(out_w + kLanes<acc_t>);
  columns.high_weight.resize(out_w + kLanes<acc_t>);
  for (int64_t x = 0; x < out_w; ++x) {
    const BilinearTap<acc_t> tap = bilinear_tap<acc_t>(x, in_w, out_w);
    columns.low_weight[x] = tap.low_weight;
    columns.high_weight[x] = tap.high_weight;
    const std::vector<ColumnRun>& runs = columns.runs;
    if (runs.empty() || runs.back().source != tap.low || x - runs.back().begin == kLanes<acc_t>) {
      columns.runs.push_back({x, tap.low});
    }
  }
  return columns;
}

// Where class c of column x lies in a source row: c * class_step + x * column_step. A row ends in a copy of its last
// column, so that every column has a right neighbour.
struct RowLayout {
  int64_t classes, width, class_step, column_step;
  int64_t size() const {
    return classes * (width + 1);
  }
};

template <typename scalar_t, typename acc_t>
void load_row(const scalar_t* image, int64_t y, int64_t height, bool channels_last, const RowLayout& layout,
              acc_t* row) {
  const int64_t w = layout.width;
  for (int64_t c = 0; c < layout.classes; ++c) {
    for (int64_t x = 0; x <= w; ++x) {
      const int64_t column = std::min(x, w - 1);
      const int64_t from = channels_last ? (y * w + column) * layout.classes + c : (c * height + y) * w + column;
      row[c * layout.class_step + x * layout.column_step] = static_cast<acc_t>(image[from]);
    }
  }
}

template <typename acc_t>
SEGKERNELS_CLONES void blend_rows(const acc_t* low, const acc_t* high, acc_t low_weight, acc_t high_weight,
                                  int64_t count, acc_t* row) {
  for (int64_t i = 0; i < count; ++i) {
    row[i] = low[i] * low_weight + high[i] * high_weight;
  }
}

// bins has room for kLanes more than the row: each run writes whole vectors, the next one overwrites the excess.
template <typename acc_t>
SEGKERNELS_CLONES void argmax_upsampled_row(const acc_t* row, const RowLayout& layout, const Columns<acc_t>& columns,
                                            int32_t* bins) {
  using index_t = std::conditional_t<sizeof(acc_t) == 8, int64_t, int32_t>;
  typedef acc_t values_t __attribute__((vector_size(32)));
  typedef index_t indices_t __attribute__((vector_size(32)));
  for (const ColumnRun& run : columns.runs) {
    values_t low_weight, high_weight;
    __builtin_memcpy(&low_weight, columns.low_weight.data() + run.begin, sizeof(values_t));
    __builtin_memcpy(&high_weight, columns.high_weight.data() + run.begin, sizeof(values_t));
    const acc_t* low = row + run.source * layout.column_step;
    const acc_t* high = low + layout.column_step;
    values_t best = *low * low_weight + *high * high_weight;
    indices_t index = {};
    for (int64_t c = 1; c < layout.classes; ++c) {
      low += layout.class_step;
      high += layout.class_step;
      const values_t value = *low * low_weight + *high * high_weight;
      const indices_t take = ~(value <= best) & (best == best);
      best = take ? value : best;
      index = take ? indices_t{} + static_cast<index_t>(c) : index;
    }
    for (int64_t i = 0; i < kLanes<acc_t>; ++i) {
      bins[run.begin + i] = static_cast<int32_t>(index[i]);
    }
  }
}

struct Counts {
  int64_t classes;
  int64_t* matrix;   // [C, C]
  int64_t* invalid;  // [2]: predicted, target labels outside [0, C)
};

// Runs f(histogram, begin, end) over [0, items), each worker with a histogram of its own, and sums them: counts are
// integers, so the order does not matter.
template <typename F>
void count_items(int64_t items, int64_t elements_per_item, const Counts& counts, const F& f) {
  const auto [classes, matrix, invalid] = counts;
  const int64_t size = classes + 2;
  // A worker is worth its threads' start and its own table.
  const int64_t worthwhile = items * elements_per_item / std::max(kGrainElements, size * size);
  const int64_t workers = std::clamp<int64_t>(worthwhile, 1, torch::stable::get_num_threads());
  std::vector<JointHistogram> histograms(workers, JointHistogram(size, size));
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      f(histograms[worker], items * worker / workers, items * (worker + 1) / workers);
    }
  });
  std::fill(matrix, matrix + classes * classes, 0);
  std::fill(invalid, invalid + 2, 0);
  for (const JointHistogram& histogram : histograms) {
    for (int64_t row = 0; row < classes; ++row) {
      for (int64_t col = 0; col < classes; ++col) {
        matrix[row * classes + col] += histogram.total(row, col);
      }
    }
    for (int64_t bin = 0; bin < size; ++bin) {
      invalid[0] += histogram.total(bin, classes + 1);
      invalid[1] += histogram.total(classes + 1, bin);
    }
  }
}

// Pixels in blocks that do not cross from one of `images` into the next; classify(image, begin, count, bins) finds the
// predicted bins.
template <typename F>
void count_blocks(int64_t images, int64_t pixels, int64_t elements_per_pixel, const Labels& target,
                  const Counts& counts, const F& classify) {
  const int64_t blocks = (pixels + kBlock - 1) / kBlock;
  count_items(images * blocks, std::min(kBlock, pixels) * elements_per_pixel, counts,
              [&](JointHistogram& histogram, int64_t begin, int64_t end) {
                int32_t rows[kBlock], cols[kBlock];
                for (int64_t item = begin; item < end; ++item) {
                  const int64_t image = item / blocks;
                  const int64_t first = (item - image * blocks) * kBlock;
                  const int64_t count = std::min(kBlock, pixels - first);
                  target.bins(image * pixels + first, count, rows);
                  classify(image, first, count, cols);
                  histogram.add(rows, cols, count);
                }
              });
}

// Dense with the channels innermost. One pixel per image is that too: it makes [N, C] one run of pixels.
bool channels_innermost(const Tensor& logits) {
  int64_t expected = logits.size(1);
  for (int64_t d = logits.dim() - 1; d >= 0; --d) {
    if (d != 1 && logits.size(d) != 1) {
      if (logits.stride(d) != expected) {
        return false;
      }
      expected *= logits.size(d);
    }
  }
  return logits.size(1) == 1 || logits.stride(1) == 1;
}

template <typename scalar_t>
void count_logits(const Tensor& logits, bool channels_last, const Labels& target, const Counts& counts) {
  const int64_t images = logits.size(0);
  const int64_t classes = logits.size(1);
  const int64_t pixels = images ? logits.numel() / (images * classes) : 0;
  const scalar_t* data = static_cast<const scalar_t*>(logits.const_data_ptr());
  if (channels_last) {
    count_blocks(1, images * pixels, classes, target, counts,
                 [&](int64_t, int64_t begin, int64_t count, int32_t* bins) {
                   argmax_pixels(data + begin * classes, classes, count, bins);
                 });
  } else {
    count_blocks(images, pixels, classes, target, counts,
                 [&](int64_t image, int64_t begin, int64_t count, int32_t* bins) {
                   argmax_planes(data + image * classes * pixels + begin, classes, pixels, count, bins);
                 });
  }
}

template <typename scalar_t>
void count_upsampled(const Tensor& logits, bool channels_last, int64_t out_h, int64_t out_w, const Labels& target,
                     const Counts& counts) {
  using acc_t = accumulate_t<scalar_t>;
  const int64_t classes = logits.size(1);
  const int64_t h = logits.size(2);
  const int64_t w = logits.size(3);
  const scalar_t* data = static_cast<const scalar_t*>(logits.const_data_ptr());
  const Columns<acc_t> columns = upsampled_columns<acc_t>(w, out_w);
  const RowLayout layout{classes, w, channels_last ? 1 : w + 1, channels_last ? classes : 1};
  const auto count_rows = [&](JointHistogram& histogram, int64_t begin, int64_t end) {
    std::vector<acc_t> low(layout.size()), high(layout.size()), row(layout.size());
    std::vector<int32_t> rows(out_w), cols(out_w + kLanes<acc_t>);
    int64_t low_loaded = -1;
    int64_t high_loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / out_h;
      const BilinearTap<acc_t> tap = bilinear_tap<acc_t>(item - image * out_h, h, out_h);
      const scalar_t* source = data + image * classes * h * w;
      if (image * h + tap.low == high_loaded) {
        std::swap(low, high);
        std::swap(low_loaded, high_loaded);
      }
      if (image * h + tap.low != low_loaded) {
        load_row(source, tap.low, h, channels_last, layout, low.data());
        low_loaded = image * h + tap.low;
      }
      if (image * h + tap.high != high_loaded) {
        load_row(source, tap.high, h, channels_last, layout, high.data());
        high_loaded = image * h + tap.high;
      }
      blend_rows(low.data(), high.data(), tap.low_weight, tap.high_weight, layout.size(), row.data());
      argmax_upsampled_row(row.data(), layout, columns, cols.data());
      target.bins(item * out_w, out_w, rows.data());
      histogram.add(rows.data(), cols.data(), out_w);
    }
  };
  count_items(logits.size(0) * out_h, out_w * classes, counts, count_rows);
}

// Whether the logits have to be upsampled to the target; raises when their shapes do not fit.
bool check_logits(const Tensor& logits, const Tensor& target, int64_t classes) {
  bool fits = logits.dim() == target.dim() + 1 && logits.size(0) == target.size(0) && logits.size(1) == classes;
  bool same = true;
  bool smaller = logits.dim() == 4;
  for (int64_t d = 1; fits && d < target.dim(); ++d) {
    same = same && logits.size(d + 1) == target.size(d);
    smaller = smaller && logits.size(d + 1) > 0 && logits.size(d + 1) <= target.size(d);
  }
  STD_TORCH_CHECK(fits && (same || smaller), "confusion_matrix: expected logits [N, ", classes,
                  ", *] of the size of the target [N, *], or smaller in two dimensions, got ", shape_string(logits),
                  " and ", shape_string(target));
  return !same;
}

bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

std::tuple<Tensor, Tensor> confusion_matrix_cpu(const Tensor& prediction,  // [N, *] labels or [N, C, *] logits
                                                const Tensor& target,      // [N, *]
                                                int64_t num_classes, std::optional<int64_t> ignore_index) {
  STD_TORCH_CHECK(num_classes >= 1 && num_classes < INT32_MAX - 1, "confusion_matrix: expected num_classes >= 1, got ",
                  num_classes);
  const int64_t shape[] = {num_classes, num_classes};
  Tensor matrix = torch::stable::empty({shape, 2}, ScalarType::Long);
  const int64_t pair[] = {2};
  Tensor invalid = torch::stable::empty({pair, 1}, ScalarType::Long);
  const Counts counts{num_classes, static_cast<int64_t*>(matrix.mutable_data_ptr()),
                      static_cast<int64_t*>(invalid.mutable_data_ptr())};
  const Labels truth(target, "target", num_classes, ignore_index);
  if (!is_floating(prediction.scalar_type())) {
    check_same_shape(prediction, target, "confusion_matrix", "prediction", "target");
    // An ignored class still counts where it is predicted; a label outside [0, C) has no column.
    const bool is_class = ignore_index.has_value() && *ignore_index >= 0 && *ignore_index < num_classes;
    const Labels predicted(prediction, "prediction", num_classes, is_class ? std::nullopt : ignore_index);
    count_blocks(1, target.numel(), 2, truth, counts,
                 [&](int64_t, int64_t begin, int64_t count, int32_t* bins) { predicted.bins(begin, count, bins); });
    return {matrix, invalid};
  }
  const bool upsampled = check_logits(prediction, target, num_classes);
  const bool channels_last = channels_innermost(prediction);
  const Tensor logits = channels_last ? prediction : torch::stable::contiguous(prediction);
  dispatch_floating(logits.scalar_type(), "confusion_matrix", [&]<typename scalar_t>() {
    if (upsampled) {
      count_upsampled<scalar_t>(logits, channels_last, target.size(1), target.size(2), truth, counts);
    } else {
      count_logits<scalar_t>(logits, channels_last, truth, counts);
    }
  });
  return {matrix, invalid};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("confusion_matrix", TORCH_BOX(&confusion_matrix_cpu));
}

}  // namespace segkernels
