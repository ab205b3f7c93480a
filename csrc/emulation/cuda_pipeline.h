// CUDA's cuda_pipeline.h: the intrinsics behind cp.async.
#pragma once

#include "scheduler.h"

inline void __pipeline_memcpy_async(void* shared, const void* global, size_t bytes, size_t zeros = 0,
                                    segkernels::emulation::Site where = segkernels::emulation::Site::current()) {
  segkernels::emulation::copy_async(shared, global, bytes, zeros, where);
}

inline void __pipeline_commit() {
  segkernels::emulation::commit_copies();
}

inline void __pipeline_wait_prior(unsigned int groups) {
  segkernels::emulation::wait_copies(groups);
}
