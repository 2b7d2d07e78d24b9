// Non-GEMM operations of a decoder layer, except attention: embedding lookup, norms, RoPE, KV cache
// writes, SiLU, residual and bias. The residual stream is float; all other activations have the
// base's dtype.

// `to[i] = from[ids[i]]` for rows of `width` values, widened to float. One block per row.
KERNEL(gather_rows, float *to, const T *from, const uint32_t *ids, uint32_t width) {
    from += uint64_t(ids[blockIdx.x]) * width;
    to += uint64_t(blockIdx.x) * width;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = widen(from[i]);
}

// `y = w * x / sqrt(mean(x^2) + eps)`. One block per row.
KERNEL(rms_norm, T *y, const float *x, const T *weight, uint32_t width, float eps) {
    x += uint64_t(blockIdx.x) * width;
    y += uint64_t(blockIdx.x) * width;
    float square = 0.f;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) square += x[i] * x[i];
    const float inverse = 1.f / sqrtf(sum_over_block(square) / width + eps);
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
        store(y + i, x[i] * (inverse * widen(weight[i])));
}

// `x += y`, then `normed = rms_norm(x)`. One block per row. Each thread handles the same columns in
// both passes, so `x` needs no barrier between them.
KERNEL(add_rms_norm, T *normed, float *x, const T *y, const T *weight, uint32_t width, float eps) {
    x += uint64_t(blockIdx.x) * width;
    y += uint64_t(blockIdx.x) * width;
    normed += uint64_t(blockIdx.x) * width;
    float square = 0.f;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        const float sum = x[i] + widen(y[i]);
        x[i] = sum;
        square += sum * sum;
    }
    const float inverse = 1.f / sqrtf(sum_over_block(square) / width + eps);
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
        store(normed + i, x[i] * (inverse * widen(weight[i])));
}

// Rotates heads in place by the angles of their rows: value `i` together with value `i + dim / 2`.
// If there are norms, each head is normalised first: the first `queries` heads with one weight, the
// heads after them with another. One block per row, one head per warp at a time.
KERNEL(rotate, T *x, uint64_t row_stride, const float *cos, const float *sin, const T *query_norm,
       const T *key_norm, uint32_t queries, float eps, uint32_t heads, uint32_t dim) {
    const uint32_t half = dim / 2, lane = threadIdx.x % WARP;
    x += blockIdx.x * row_stride;
    cos += uint64_t(blockIdx.x) * half;
    sin += uint64_t(blockIdx.x) * half;
    for (uint32_t head = threadIdx.x / WARP; head < heads; head += blockDim.x / WARP) {
        T *values = x + uint64_t(head) * dim;
        const T *norm = head < queries ? query_norm : key_norm;
        float inverse = 1.f;
        if (norm != nullptr) {
            float square = 0.f;
            for (uint32_t i = lane; i < dim; i += WARP)
                square += widen(values[i]) * widen(values[i]);
            inverse = 1.f / sqrtf(sum_over(square, WARP) / dim + eps);
        }
        for (uint32_t i = lane; i < half; i += WARP) {
            float a = widen(values[i]), b = widen(values[i + half]);
            if (norm != nullptr) {
                a *= inverse * widen(norm[i]);
                b *= inverse * widen(norm[i + half]);
            }
            store(values + i, a * cos[i] - b * sin[i]);
            store(values + i + half, b * cos[i] + a * sin[i]);
        }
    }
}

// Writes the keys and values of each new row to its slot. In a row, the values follow the keys; in
// the cache, the values start `half` elements after the keys. One block per row.
KERNEL(kv_write, T *keys, uint64_t half, const T *fresh, uint64_t row_stride, const uint32_t *slots,
       uint32_t heads, uint32_t dim) {
    const uint32_t slot = slots[blockIdx.x], offset = slot % KV_BLOCK;
    fresh += blockIdx.x * row_stride;
    for (uint32_t i = threadIdx.x; i < heads * dim; i += blockDim.x) {
        const uint32_t head = i / dim, d = i % dim;
        T *block = keys + (uint64_t(slot / KV_BLOCK) * heads + head) * dim * KV_BLOCK;
        block[d * KV_BLOCK + offset] = fresh[i];
        block[half + offset * dim + d] = fresh[heads * dim + i];
    }
}

// `y = silu(gate) * up`. A row of `gate_up` has `width` gate values, then `width` up values.
KERNEL(silu_mul, T *y, const T *gate_up, uint32_t width, uint64_t count) {
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const T *row = gate_up + i / width * 2 * width;
        const float gate = widen(row[i % width]), up = widen(row[i % width + width]);
        store(y + i, gate / (1.f + __expf(-gate)) * up);
    }
}

// `x += y`; `x` is the residual stream in float.
KERNEL(residual_add, float *x, const T *y, uint64_t count) {
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += uint64_t(gridDim.x) * blockDim.x)
        x[i] += widen(y[i]);
}

#ifndef TOMBOLA_DECODER
#define TOMBOLA_DECODER
template <typename To, typename V>
__device__ inline void add_to_rows(To *y, const V *bias, uint32_t width, uint64_t count) {
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += uint64_t(gridDim.x) * blockDim.x)
        store(y + i, widen(y[i]) + widen(bias[i % width]));
}
#endif

// `y += bias` in every row.
KERNEL(bias_add, T *y, const T *bias, uint32_t width, uint64_t count) {
    add_to_rows(y, bias, width, count);
}

// `y += bias` in every row, for `y` in float.
KERNEL(bias_add_to_f32, float *y, const T *bias, uint32_t width, uint64_t count) {
    add_to_rows(y, bias, width, count);
}
