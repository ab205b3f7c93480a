// Confusion matrix on the CPU, from labels or straight from logits: per block of pixels the class of each is found,
// both labels become bins, and the pairs are counted.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/check.h"
#include "../common/confusion_matrix.h"
#include "../common/joint_histogram.h"
#include "../common/label_bins.h"
#include "../common/parallel.h"
#include "../common/upsample_argmax.h"
#include "confusion_matrix_classes.h"

namespace segkernels {
namespace {

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
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      f(histograms[worker], items * worker / workers, items * (worker + 1) / workers);
    }
  };
  if (workers == 1) {
    work(0, 1);
  } else {
    torch::stable::parallel_for(0, workers, 1, work);
  }
  std::fill(matrix, matrix + classes * classes, 0);
  std::fill(invalid, invalid + 2, 0);
  for (JointHistogram& histogram : histograms) {
    const int64_t* totals = histogram.counts();
    for (int64_t row = 0; row < classes; ++row) {
      for (int64_t col = 0; col < classes; ++col) {
        matrix[row * classes + col] += totals[row * size + col];
      }
    }
    for (int64_t bin = 0; bin < size; ++bin) {
      invalid[0] += totals[bin * size + classes + 1];
      invalid[1] += totals[(classes + 1) * size + bin];
    }
  }
}

// Pixels in blocks of kBlock that do not cross from one of `images` into the next; classify(image, begin, count, bins)
// finds the predicted bins.
template <int64_t kBlock, typename F>
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

// A run of int64 labels, the usual case, without a detour of their bins through memory. Returns how many pairs were
// counted: all but the last ones that do not fill eight.
SEGKERNELS_CLONES int64_t count_int64(const int64_t* target, const int64_t* prediction, int64_t count,
                                      LabelRule<int64_t> target_rule, LabelRule<int64_t> prediction_rule,
                                      int64_t* counts) {
  const int32_t width = target_rule.classes + 2;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __builtin_prefetch(target + i + kLabelBlock);
    __builtin_prefetch(prediction + i + kLabelBlock);
    const bins_t joint = eight_bins(target + i, target_rule) * width + eight_bins(prediction + i, prediction_rule);
    int32_t bins[8];
    __builtin_memcpy(bins, &joint, sizeof(joint));
    count_eight(bins, counts);
  }
  return i;
}

void count_labels(const Labels& target, const Labels& prediction, int64_t pixels, const Counts& counts) {
  const int64_t* targets = target.int64_data();
  const int64_t* predictions = prediction.int64_data();
  const auto count_range = [&](JointHistogram& histogram, int64_t begin, int64_t end) {
    int64_t pixel = begin;
    if (targets && predictions && histogram.narrow()) {
      pixel += count_int64(targets + begin, predictions + begin, end - begin, target.int64_rule(),
                           prediction.int64_rule(), histogram.counts());
    }
    int32_t rows[kLabelBlock], cols[kLabelBlock];
    for (; pixel < end; pixel += kLabelBlock) {
      const int64_t count = std::min(kLabelBlock, end - pixel);
      target.bins(pixel, count, rows);
      prediction.bins(pixel, count, cols);
      histogram.add(rows, cols, count);
    }
  };
  count_items(pixels, 2, counts, count_range);
}

template <typename scalar_t>
void count_logits(const Tensor& logits, bool channels_last, const Labels& target, const Counts& counts) {
  const int64_t images = logits.size(0);
  const int64_t classes = logits.size(1);
  const int64_t pixels = images ? logits.numel() / (images * classes) : 0;
  const scalar_t* data = static_cast<const scalar_t*>(logits.const_data_ptr());
  if (channels_last) {
    count_blocks<kLabelBlock>(1, images * pixels, classes, target, counts,
                              [&](int64_t, int64_t begin, int64_t count, int32_t* bins) {
                                argmax_pixels(data + begin * classes, classes, count, bins);
                              });
  } else {
    count_blocks<kPlaneBlock>(images, pixels, classes, target, counts,
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
  const scalar_t* data = static_cast<const scalar_t*>(logits.const_data_ptr());
  const BilinearAxis<acc_t> axis = bilinear_axis<acc_t>(logits.size(2), out_h);
  const Columns<acc_t> columns = upsampled_columns(bilinear_axis<acc_t>(logits.size(3), out_w));
  const auto count_rows = [&](JointHistogram& histogram, int64_t begin, int64_t end) {
    UpsampledArgmax<scalar_t> argmax(data, classes, channels_last, axis, columns, logits.size(3));
    std::vector<int32_t> rows(out_w), cols(out_w + kLanes<acc_t>);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / out_h;
      argmax.classify(image, item - image * out_h, cols.data());
      target.bins(item * out_w, out_w, rows.data());
      histogram.add(rows.data(), cols.data(), out_w);
    }
  };
  count_items(logits.size(0) * out_h, out_w * classes, counts, count_rows);
}

std::tuple<Tensor, Tensor> confusion_matrix_cpu(const Tensor& prediction,  // [N, *] labels or [N, C, *] logits
                                                const Tensor& target,      // [N, *]
                                                int64_t num_classes, std::optional<int64_t> ignore_index) {
  check_num_classes(num_classes);
  Tensor matrix = empty({num_classes, num_classes}, ScalarType::Long, target);
  Tensor invalid = empty({2}, ScalarType::Long, target);
  const Counts counts{num_classes, static_cast<int64_t*>(matrix.mutable_data_ptr()),
                      static_cast<int64_t*>(invalid.mutable_data_ptr())};
  const Labels truth(target, "confusion_matrix", num_classes, ignore_index);
  if (!is_floating(prediction.scalar_type())) {
    check_same_shape(prediction, target, "confusion_matrix", "prediction", "target");
    // An ignored class still counts where it is predicted; a label outside [0, C) has no column.
    const bool is_class = ignore_index.has_value() && *ignore_index >= 0 && *ignore_index < num_classes;
    const Labels predicted(prediction, "confusion_matrix", num_classes, is_class ? std::nullopt : ignore_index);
    count_labels(truth, predicted, target.numel(), counts);
    return {matrix, invalid};
  }
  const bool upsampled = check_confusion_logits(prediction, target, num_classes);
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
