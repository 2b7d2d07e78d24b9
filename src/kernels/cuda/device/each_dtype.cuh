// The kernels that are compiled for each dtype; included once per dtype.
#include "attention.cuh"
#include "decoder.cuh"
#include "overlay.cuh"
#include "apply.cuh"
