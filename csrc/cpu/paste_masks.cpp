// Pastes masks into the image: only the pixels of each box are computed. No fused multiply-adds in the corners of the
// boxes: they are truncated, and rounding would move a mask by a pixel.
#pragma GCC optimize("fp-contract=off")

#include "../common/paste_masks.h"

#include <torch/csrc/stable/library.h>

#include <cstring>

#include "../common/parallel.h"
#include "paste_rows.h"

namespace segkernels {
namespace {

template <typename T>
void paste_plane(const PasteMasksParams& p, const T* values, const T* box, uint8_t* plane) {
  PastedMask<T> pasted(p, values, box);
  if (pasted.empty()) {
    std::memset(plane, 0, p.image_h * p.image_w);
    return;
  }
  const int64_t left = pasted.columns.begin, right = pasted.columns.end;
  std::memset(plane, 0, pasted.rows.begin * p.image_w + left);
  for (int64_t y = pasted.rows.begin; y < pasted.rows.end; ++y) {
    uint8_t* row = plane + y * p.image_w;
    paste_row(pasted, y, 0, right - left, static_cast<T>(p.threshold), row + left);
    // Up to the box in the next row.
    const bool last = y + 1 == pasted.rows.end;
    std::memset(row + right, 0, last ? (p.image_h - y) * p.image_w - right : p.image_w - right + left);
  }
}

Tensor paste_masks_cpu(const Tensor& masks,  // [N, h, w]
                       const Tensor& boxes,  // [N, 4]
                       std::vector<int64_t> image_size, double threshold, int64_t style) {
  const PasteMasksParams p = paste_masks_params(masks, boxes, image_size, threshold, style, "paste_masks");
  const ScalarType dtype = paste_type(masks, boxes);
  const Tensor values = to_coordinates(masks, dtype);
  const Tensor corners = to_coordinates(boxes, dtype);
  Tensor output = empty({p.count, p.image_h, p.image_w}, ScalarType::Bool, masks);  // [N, H, W]
  if (output.numel() == 0) {
    return output;
  }
  uint8_t* planes = static_cast<uint8_t*>(output.mutable_data_ptr());
  dispatch_compute(dtype, [&]<typename T>() {
    const T* mask = static_cast<const T*>(values.const_data_ptr());
    const T* box = static_cast<const T*>(corners.const_data_ptr());
    parallel_items(p.count, p.image_h * p.image_w, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        paste_plane(p, mask + n * p.mask_h * p.mask_w, box + 4 * n, planes + n * p.image_h * p.image_w);
      }
    });
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("paste_masks", TORCH_BOX(&paste_masks_cpu));
}

}  // namespace segkernels
