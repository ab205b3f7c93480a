// Boxes and their masks as one translation unit: reading the headers takes nvcc longer than the kernels of most files.
#include "../batched_nms.cu"
#include "../box_iou.cu"
#include "../nms.cu"
#include "../paste_masks.cu"
