// What is read of the logits, which are in float whatever the base's dtype is.
#pragma once

// The greatest finite logit of each row, the first among equals: its token, or 0xffffffff where there
// is none. A block has one row.
NAMED_KERNEL(argmax, uint32_t *tokens, const float *logits, uint32_t vocabulary) {
    __shared__ float values[WARP];
    __shared__ uint32_t indices[WARP];
    logits += uint64_t(blockIdx.x) * vocabulary;
    float best = -INFINITY;
    uint32_t at = 0xffffffffu;
    for (uint32_t i = threadIdx.x; i < vocabulary; i += blockDim.x)
        if (logits[i] > best && logits[i] < INFINITY) best = logits[i], at = i;
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const auto reduce = [&] {
        for (uint32_t step = WARP / 2; step > 0; step /= 2) {
            const float value = __shfl_xor_sync(ALL_LANES, best, step);
            const uint32_t index = __shfl_xor_sync(ALL_LANES, at, step);
            if (value > best || (value == best && index < at)) best = value, at = index;
        }
    };
    reduce();
    if (lane == 0) values[warp] = best, indices[warp] = at;
    __syncthreads();
    if (warp != 0) return;
    const bool has = lane < blockDim.x / WARP;
    best = has ? values[lane] : -INFINITY;
    at = has ? indices[lane] : 0xffffffffu;
    reduce();
    if (lane == 0) tokens[blockIdx.x] = at;
}
