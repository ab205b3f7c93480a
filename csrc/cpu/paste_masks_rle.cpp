// Run lengths of the pasted masks, column after column, without the pasted masks: a strip of each box at a time.
#pragma GCC optimize("fp-contract=off")

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/parallel.h"
#include "../common/paste_masks.h"
#include "paste_rows.h"

namespace segkernels {
namespace {

constexpr int64_t kStrip = 64;  // columns

// Run lengths in raster order of the transposed image, zeros first.
class Runs {
 public:
  explicit Runs(std::vector<int64_t>& counts) : counts_(counts) {}

  void set(uint8_t value, int64_t position) {
    if (value != value_) {
      counts_.push_back(position - start_);
      start_ = position;
      value_ = value;
    }
  }
  void finish(int64_t total) {
    // A run that would begin behind the last pixel was none.
    if (start_ < total || counts_.empty()) {
      counts_.push_back(total - start_);
    }
  }

 private:
  std::vector<int64_t>& counts_;
  int64_t start_ = 0;
  uint8_t value_ = 0;
};

template <typename T>
void count_runs(const PasteMasksParams& p, const T* values, const T* box, std::vector<int64_t>& counts) {
  Runs runs(counts);
  PastedMask<T> pasted(p, values, box);
  if (!pasted.empty()) {
    const int64_t top = pasted.rows.begin, height = pasted.rows.end - top;
    const bool full_height = height == p.image_h;
    std::vector<uint8_t> strip(height * kStrip);
    for (int64_t left = pasted.columns.begin; left < pasted.columns.end; left += kStrip) {
      const int64_t width = std::min(kStrip, pasted.columns.end - left);
      for (int64_t y = 0; y < height; ++y) {
        paste_row(pasted, top + y, left - pasted.columns.begin, width, static_cast<T>(p.threshold),
                  strip.data() + y * kStrip);
      }
      for (int64_t x = 0; x < width; ++x) {
        const int64_t origin = (left + x) * p.image_h + top;
        for (int64_t y = 0; y < height; ++y) {
          runs.set(strip[y * kStrip + x], origin + y);
        }
        if (!full_height) {
          runs.set(0, origin + height);
        }
      }
    }
    runs.set(0, pasted.columns.end * p.image_h);
  }
  runs.finish(p.image_h * p.image_w);
}

std::tuple<Tensor, Tensor> paste_masks_rle_cpu(const Tensor& masks,  // [N, h, w]
                                               const Tensor& boxes,  // [N, 4]
                                               std::vector<int64_t> image_size, double threshold, int64_t style) {
  const PasteMasksParams p = paste_masks_params(masks, boxes, image_size, threshold, style, "paste_masks_rle");
  const ScalarType dtype = paste_type(masks, boxes);
  const Tensor values = to_coordinates(masks, dtype);
  const Tensor corners = to_coordinates(boxes, dtype);
  std::vector<std::vector<int64_t>> counts(p.count);
  dispatch_compute(dtype, [&]<typename T>() {
    const T* mask = static_cast<const T*>(values.const_data_ptr());
    const T* box = static_cast<const T*>(corners.const_data_ptr());
    parallel_items(p.count, kGrainElements, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        count_runs(p, mask + n * p.mask_h * p.mask_w, box + 4 * n, counts[n]);
      }
    });
  });
  Tensor offsets = empty({p.count + 1}, ScalarType::Long, masks);  // [N + 1]
  int64_t* offset = static_cast<int64_t*>(offsets.mutable_data_ptr());
  offset[0] = 0;
  for (int64_t n = 0; n < p.count; ++n) {
    offset[n + 1] = offset[n] + static_cast<int64_t>(counts[n].size());
  }
  Tensor runs = empty({offset[p.count]}, ScalarType::Long, masks);  // [R]
  for (int64_t n = 0; n < p.count; ++n) {
    std::copy(counts[n].begin(), counts[n].end(), static_cast<int64_t*>(runs.mutable_data_ptr()) + offset[n]);
  }
  return {runs, offsets};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("paste_masks_rle", TORCH_BOX(&paste_masks_rle_cpu));
}

}  // namespace segkernels
