// Replaces `compatibility.cuh` in candle's kernels: defines the parts of CUDA that they use and
// emulation.h lacks. Only one thread runs at a time, so atomics are plain operations.
#pragma once
#include "emulation.h"

#include <cuda_fp8.h>

#include <cassert>

// For kernel-name extraction by deploy/cuda/emulated, which searches the preprocessed source.
#ifdef FIND_KERNELS
#undef __global__
#define __global__ A_KERNEL
#endif

using std::isnan;
using std::signbit;
inline double normcdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
inline float normcdff(float x) { return float(normcdf(x)); }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

template <typename V>
V atomicAdd(V *at, V value) {
    const V old = *at;
    *at = old + value;
    return old;
}
template <typename V>
V __ldg(const V *at) {
    return *at;
}
template <typename V>
V __shfl_xor_sync(unsigned mask, V value, unsigned lanes, int) {
    return __shfl_xor_sync(mask, value, lanes);
}
template <typename V>
V __shfl_down_sync(unsigned, V value, unsigned by) {
    return emulation::shuffle(value, std::min(emulation::current % 32 + by, 31u));
}
