// Regions of interest as one translation unit: reading the headers takes nvcc longer than the kernels of most files.
#include "../roi_align.cu"
#include "../roi_align_backward.cu"
#include "../roi_pool.cu"
