// The class of each pixel of bilinearly upsampled logits on the CPU; the upsampled logits never exist.
#include "../common/upsample_argmax.h"

#include <torch/csrc/stable/library.h>

#include "../common/upsample_labels.h"

namespace segkernels {
namespace {

template <typename label_t>
SEGKERNELS_CLONES void store_labels(const int32_t* classes, int64_t count, label_t* labels) {
  for (int64_t i = 0; i < count; ++i) {
    labels[i] = static_cast<label_t>(classes[i]);
  }
}

void store_row(const int32_t* classes, int64_t count, int64_t begin, const Tensor& labels) {
  void* data = labels.mutable_data_ptr();
  switch (labels.scalar_type()) {
    case ScalarType::Byte:
      return store_labels(classes, count, static_cast<uint8_t*>(data) + begin);
    case ScalarType::Int:
      return store_labels(classes, count, static_cast<int32_t*>(data) + begin);
    default:
      return store_labels(classes, count, static_cast<int64_t*>(data) + begin);
  }
}

Tensor upsample_argmax_cpu(const Tensor& logits,  // [N, C, h, w]
                           std::vector<int64_t> output_size, bool align_corners, int64_t label_bits) {
  check_output_size("upsample_argmax", "output_size", output_size, logits);
  const ScalarType dtype = label_dtype(logits, label_bits);
  const bool channels_last = is_channels_last(logits);
  const Tensor dense = to_dense(logits, channels_last);
  const int64_t out_h = output_size[0];
  const int64_t out_w = output_size[1];
  Tensor labels = empty({logits.size(0), out_h, out_w}, dtype, logits);  // [N, H, W]
  dispatch_floating(logits.scalar_type(), "upsample_argmax", [&]<typename scalar_t>() {
    using acc_t = accumulate_t<scalar_t>;
    const BilinearAxis<acc_t> rows = bilinear_axis<acc_t>(logits.size(2), out_h, align_corners);
    const Columns<acc_t> columns = upsampled_columns(bilinear_axis<acc_t>(logits.size(3), out_w, align_corners));
    const scalar_t* data = static_cast<const scalar_t*>(dense.const_data_ptr());
    parallel_items(logits.size(0) * out_h, out_w * logits.size(1), [&](int64_t begin, int64_t end) {
      UpsampledArgmax<scalar_t> argmax(data, logits.size(1), channels_last, rows, columns, logits.size(3));
      std::vector<int32_t> classes(out_w + kLanes<acc_t>);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t image = item / out_h;
        argmax.classify(image, item - image * out_h, classes.data());
        store_row(classes.data(), out_w, item * out_w, labels);
      }
    });
  });
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax_cpu));
}

}  // namespace segkernels
