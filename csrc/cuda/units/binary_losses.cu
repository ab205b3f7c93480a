// Losses of independent channels as one translation unit: reading the headers takes nvcc longer than the kernels of
// most files.
#include "../dice_bce_loss.cu"
#include "../sigmoid_statistics.cu"
