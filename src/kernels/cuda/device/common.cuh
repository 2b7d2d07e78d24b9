// What all kernels share: the dtypes, reductions, and how a kernel is named.
//
// The kernels are compiled once for each dtype that a base may be resident in: `kernels.cu` defines T
// and KERNEL and includes the other files. All arithmetic is in float.
#pragma once
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;
// Positions of a block of keys and values; `kernels::kv::BLOCK` holds the same number.
constexpr uint32_t KV_BLOCK = 16;

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float widen(__half v) { return __half2float(v); }

// To nearest, ties to even.
__device__ inline void store(float *to, float v) { *to = v; }
__device__ inline void store(__nv_bfloat16 *to, float v) { *to = __float2bfloat16_rn(v); }
__device__ inline void store(__half *to, float v) { *to = __float2half_rn(v); }

// N neighbours, read at once: `from` is aligned to all of them.
template <typename V, uint32_t N>
struct alignas(sizeof(V) * N) Neighbours {
    V values[N];
};

// N neighbours in pieces of 16 bytes at most, widened.
template <uint32_t N, typename V>
__device__ inline void load(float (&to)[N], const V *from) {
    constexpr uint32_t PIECE = N * sizeof(V) <= 16 ? N : 16 / sizeof(V);
#pragma unroll
    for (uint32_t start = 0; start < N; start += PIECE) {
        const auto piece = *reinterpret_cast<const Neighbours<V, PIECE> *>(from + start);
#pragma unroll
        for (uint32_t i = 0; i < PIECE; ++i) to[start + i] = widen(piece.values[i]);
    }
}

// Over `lanes` neighbouring lanes, a power of two: all of them get the sum.
__device__ inline float sum_over(float v, uint32_t lanes) {
    for (uint32_t step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

// Over a whole block of at most 32 warps: all threads get the sum.
__device__ inline float sum_over_block(float v) {
    __shared__ float sums[WARP];
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    v = sum_over(v, WARP);
    __syncthreads(); // a sum before this one may still be read
    if (lane == 0) sums[warp] = v;
    __syncthreads();
    return sum_over(lane < blockDim.x / WARP ? sums[lane] : 0.f, WARP);
}
