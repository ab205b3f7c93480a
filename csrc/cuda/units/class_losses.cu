// Losses and counts over classes as one translation unit: reading the headers takes nvcc longer than the kernels of
// most files.
#include "../confusion_matrix.cu"
#include "../lovasz_loss.cu"
#include "../softmax_statistics.cu"
#include "../softmax_statistics_backward.cu"
