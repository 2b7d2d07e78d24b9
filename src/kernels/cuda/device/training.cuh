// Non-GEMM operations of the trainer, all in float. Sums have a fixed order, so runs are
// reproducible bit for bit.
#pragma once

// `target += values`, or `target += |values|` if `absolute`.
NAMED_KERNEL(accumulate, float *target, const float *values, uint64_t count, uint32_t absolute) {
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += uint64_t(gridDim.x) * blockDim.x)
        target[i] += absolute ? fabsf(values[i]) : values[i];
}

// `target[ids[i]] += values[i]` for rows of `width` values. One thread per column, because `ids`
// may repeat.
NAMED_KERNEL(accumulate_rows, float *target, const uint32_t *ids, const float *values,
             uint32_t rows, uint32_t width) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    for (uint32_t row = 0; row < rows; ++row)
        target[uint64_t(ids[row]) * width + column] += values[uint64_t(row) * width + column];
}

// `mean = beta * mean + (1 - beta) * g` with `g = scale * gradient`, or `g^2` if `square`.
NAMED_KERNEL(update_mean, float *mean, const float *gradient, uint64_t count, uint32_t square,
             float beta, float scale) {
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const float value = gradient[i] * scale;
        mean[i] = beta * mean[i] + (1.f - beta) * (square ? value * value : value);
    }
}

// `w = keep * w - rate * direction / (root * sqrt(mean_square) + eps)`.
NAMED_KERNEL(optimizer_step, float *weights, const float *direction, const float *mean_square,
             uint64_t count, float rate, float root, float eps, float keep) {
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += uint64_t(gridDim.x) * blockDim.x)
        weights[i] = keep * weights[i] - rate * direction[i] / (root * sqrtf(mean_square[i]) + eps);
}

// Sum of squares of each chunk of `chunk` values. One block per chunk.
NAMED_KERNEL(sum_of_squares, float *sums, const float *values, uint64_t count, uint32_t chunk) {
    const uint64_t first = uint64_t(blockIdx.x) * chunk;
    const uint64_t end = count - first < chunk ? count : first + chunk;
    float sum = 0.f;
    for (uint64_t i = first + threadIdx.x; i < end; i += blockDim.x) sum += values[i] * values[i];
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Transposes a matrix through shared memory, in tiles of 32 x 32. Grid: (columns / 32, rows / 32),
// rounded up; 256 threads per block.
NAMED_KERNEL(transpose, float *to, const float *from, uint32_t rows, uint32_t columns) {
    __shared__ float tile[WARP][WARP + 1];
    const uint32_t x = threadIdx.x % WARP, y = threadIdx.x / WARP;
    for (uint32_t i = y; i < WARP; i += blockDim.x / WARP) {
        const uint32_t row = blockIdx.y * WARP + i, column = blockIdx.x * WARP + x;
        if (row < rows && column < columns) tile[i][x] = from[uint64_t(row) * columns + column];
    }
    __syncthreads();
    for (uint32_t i = y; i < WARP; i += blockDim.x / WARP) {
        const uint32_t row = blockIdx.x * WARP + i, column = blockIdx.y * WARP + x;
        if (row < columns && column < rows) to[uint64_t(row) * rows + column] = tile[x][i];
    }
}

// Adds the weight gradient at the trained positions: for `(row, column)`, the dot product of row
// `row` of `dy` `[out, tokens]` and row `column` of `x` `[in, tokens]`. Each warp computes one
// position at a time; CHUNK positions per block.
NAMED_KERNEL(sddmm_gradient, float *gradient, const uint32_t *row_offsets, const uint32_t *columns,
             const float *x, const float *dy, uint32_t out, uint32_t tokens) {
    const uint32_t nonzeros = row_offsets[out], first = blockIdx.x * CHUNK,
                   lane = threadIdx.x % WARP;
    const uint32_t end = nonzeros - first < CHUNK ? nonzeros : first + CHUNK;
    for (uint32_t k = first + threadIdx.x / WARP; k < end; k += blockDim.x / WARP) {
        const uint32_t row = row_of(row_offsets, 0, out, k);
        const float *left = dy + uint64_t(row) * tokens, *right = x + uint64_t(columns[k]) * tokens;
        float sum = 0.f;
        for (uint32_t t = lane; t < tokens; t += WARP) sum += left[t] * right[t];
        sum = sum_over(sum, WARP);
        if (lane == 0) gradient[k] += sum;
    }
}

// Reads the values of a matrix `[rows, width]` at the trained positions.
NAMED_KERNEL(gather_positions, float *values, const float *weight, const uint32_t *row_offsets,
             const uint32_t *columns, uint32_t rows, uint32_t width) {
    for_each_nonzero(row_offsets, rows, blockIdx.x * CHUNK, [&](uint32_t nonzero, uint32_t row) {
        values[nonzero] = weight[uint64_t(row) * width + columns[nonzero]];
    });
}

// Writes values at the trained positions of a matrix `[rows, width]`.
NAMED_KERNEL(set_positions, float *weight, const float *values, const uint32_t *row_offsets,
             const uint32_t *columns, uint32_t rows, uint32_t width) {
    for_each_nonzero(row_offsets, rows, blockIdx.x * CHUNK, [&](uint32_t nonzero, uint32_t row) {
        weight[uint64_t(row) * width + columns[nonzero]] = values[nonzero];
    });
}

// Gradient of `silu_mul`. With s the logistic function of the gate: `dup = dy * gate * s`,
// `dgate = dy * up * s * (1 + gate * (1 - s))`.
NAMED_KERNEL(silu_mul_backward, float *dx, const float *gate_up, const float *dy, uint32_t width,
             uint64_t count) {
    for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
         i += uint64_t(gridDim.x) * blockDim.x) {
        const uint64_t at = i / width * 2 * width + i % width;
        const float gate = gate_up[at], up = gate_up[at + width];
        const float logistic = 1.f / (1.f + expf(-gate));
        dx[at] = dy[i] * up * logistic * (1.f + gate * (1.f - logistic));
        dx[at + width] = dy[i] * gate * logistic;
    }
}

// `1 / sqrt(mean(row^2) + eps)`, returned to all threads of the block.
__device__ inline float inverse_root(const float *row, uint32_t width, float eps) {
    float square = 0.f;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) square += row[i] * row[i];
    return 1.f / sqrtf(sum_over_block(square) / width + eps);
}

// Input gradient of `rms_norm`: `dx = r * (w * dy - x * r^2 * mean(w * dy * x))` with
// `r = 1 / sqrt(mean(x^2) + eps)`. One block per row.
NAMED_KERNEL(rms_norm_backward, float *dx, const float *x, const float *weight, const float *dy,
             uint32_t width, float eps) {
    x += uint64_t(blockIdx.x) * width;
    dy += uint64_t(blockIdx.x) * width;
    dx += uint64_t(blockIdx.x) * width;
    const float inverse = inverse_root(x, width, eps);
    float product = 0.f;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) product += weight[i] * dy[i] * x[i];
    const float back = sum_over_block(product) / width * inverse * inverse;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
        dx[i] = inverse * (weight[i] * dy[i] - x[i] * back);
}

// `1 / sqrt(mean(x^2) + eps)` per row. One block per row.
NAMED_KERNEL(rms_inverse, float *inverse, const float *x, uint32_t width, float eps) {
    const float row_inverse = inverse_root(x + uint64_t(blockIdx.x) * width, width, eps);
    if (threadIdx.x == 0) inverse[blockIdx.x] = row_inverse;
}

// Weight gradient of `rms_norm`: the sum over rows of `dy * x * inverse`. One thread per column.
NAMED_KERNEL(rms_norm_weight_gradient, float *gradient, const float *x, const float *dy,
             const float *inverse, uint32_t rows, uint32_t width) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.f;
    for (uint32_t row = 0; row < rows; ++row) {
        const uint64_t at = uint64_t(row) * width + column;
        sum += dy[at] * x[at] * inverse[row];
    }
    gradient[column] = sum;
}

// Cross-entropy loss per row. If `replaces`, overwrites the logits with the gradient of `weight`
// times the sum of the losses. One block per row.
NAMED_KERNEL(cross_entropy, float *losses, float *logits, const uint32_t *targets,
             uint32_t vocabulary, float weight, uint32_t replaces) {
    __shared__ float largest[WARP];
    logits += uint64_t(blockIdx.x) * vocabulary;
    const uint32_t target = targets[blockIdx.x], warp = threadIdx.x / WARP,
                   lane = threadIdx.x % WARP;
    float most = -INFINITY;
    for (uint32_t i = threadIdx.x; i < vocabulary; i += blockDim.x) most = fmaxf(most, logits[i]);
    for (uint32_t step = WARP / 2; step > 0; step /= 2)
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, step));
    if (lane == 0) largest[warp] = most;
    __syncthreads();
    for (uint32_t w = 0; w < blockDim.x / WARP; ++w) most = fmaxf(most, largest[w]);
    float sum = 0.f;
    for (uint32_t i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += expf(logits[i] - most);
    const float log_sum = most + logf(sum_over_block(sum));
    if (threadIdx.x == 0) losses[blockIdx.x] = log_sum - logits[target];
    if (!replaces) return;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < vocabulary; i += blockDim.x)
        logits[i] = weight * (expf(logits[i] - log_sum) - (i == target ? 1.f : 0.f));
}

// Arguments of the attention over whole sequences, which computes one row and head per warp. Rows
// outside every sequence have `last <= first`. `present/training/attention.rs` passes this struct.
struct CausalAttention {
    const float *q, *k, *v;       // [rows, heads or kv heads, dim]
    const uint32_t *first, *last; // per row: first row of its sequence, and end of the sequence
    uint32_t rows, heads, kv_heads, dim, window;
    float scale;
};
constexpr uint32_t CAUSAL_DIMS = 8; // values per lane: heads of up to 256

// Loads a lane's values of a head, padded with zeros.
__device__ inline void load_head(float (&to)[CAUSAL_DIMS], const float *from, uint32_t dim) {
#pragma unroll
    for (uint32_t i = 0; i < CAUSAL_DIMS; ++i) {
        const uint32_t d = threadIdx.x % WARP + i * WARP;
        to[i] = d < dim ? from[d] : 0.f;
    }
}

// Stores a lane's values of a head, times `factor`.
__device__ inline void store_head(float *to, const float (&from)[CAUSAL_DIMS], uint32_t dim,
                                  float factor) {
#pragma unroll
    for (uint32_t i = 0; i < CAUSAL_DIMS; ++i) {
        const uint32_t d = threadIdx.x % WARP + i * WARP;
        if (d < dim) to[d] = from[i] * factor;
    }
}

__device__ inline float dot(const float (&a)[CAUSAL_DIMS], const float (&b)[CAUSAL_DIMS]) {
    float sum = 0.f;
#pragma unroll
    for (uint32_t i = 0; i < CAUSAL_DIMS; ++i) sum += a[i] * b[i];
    return sum_over(sum, WARP);
}

__device__ inline void add(float (&to)[CAUSAL_DIMS], float factor,
                           const float (&from)[CAUSAL_DIMS]) {
#pragma unroll
    for (uint32_t i = 0; i < CAUSAL_DIMS; ++i) to[i] += factor * from[i];
}

// First row that `row` attends to.
__device__ inline uint32_t first_seen(const CausalAttention &a, uint32_t row) {
    const uint32_t by_window = row + 1 > a.window ? row + 1 - a.window : 0;
    return a.first[row] > by_window ? a.first[row] : by_window;
}

// Forward pass: the result, and the logarithm of each softmax sum.
NAMED_KERNEL(causal_attention, float *y, float *log_sums, CausalAttention a) {
    const uint32_t item = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (item >= a.rows * a.heads) return;
    const uint32_t row = item / a.heads, head = item % a.heads,
                   kv_head = head / (a.heads / a.kv_heads);
    float q[CAUSAL_DIMS], k[CAUSAL_DIMS], v[CAUSAL_DIMS], sum[CAUSAL_DIMS] = {};
    load_head(q, a.q + uint64_t(item) * a.dim, a.dim);
    float most = -INFINITY, total = 0.f;
    const uint32_t end = a.last[row] > a.first[row] ? row + 1 : 0;
    for (uint32_t seen = first_seen(a, row); seen < end; ++seen) {
        const uint64_t at = (uint64_t(seen) * a.kv_heads + kv_head) * a.dim;
        load_head(k, a.k + at, a.dim);
        load_head(v, a.v + at, a.dim);
        const float score = dot(q, k) * a.scale, best = fmaxf(most, score);
        const float kept = expf(most - best), weight = expf(score - best);
#pragma unroll
        for (uint32_t i = 0; i < CAUSAL_DIMS; ++i) sum[i] *= kept;
        add(sum, weight, v);
        total = total * kept + weight;
        most = best;
    }
    store_head(y + uint64_t(item) * a.dim, sum, a.dim, total > 0.f ? 1.f / total : 0.f);
    if (threadIdx.x % WARP == 0) log_sums[item] = total > 0.f ? most + logf(total) : 0.f;
}

// Backward pass, first part: the gradient of the queries and, for the second part, `dot(y, dy)` per
// row and head.
NAMED_KERNEL(causal_attention_dq, float *dq, float *products, const float *y, const float *log_sums,
             const float *dy, CausalAttention a) {
    const uint32_t item = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (item >= a.rows * a.heads) return;
    const uint32_t row = item / a.heads, head = item % a.heads,
                   kv_head = head / (a.heads / a.kv_heads);
    float q[CAUSAL_DIMS], k[CAUSAL_DIMS], v[CAUSAL_DIMS], d[CAUSAL_DIMS], sum[CAUSAL_DIMS] = {};
    load_head(q, a.q + uint64_t(item) * a.dim, a.dim);
    load_head(d, dy + uint64_t(item) * a.dim, a.dim);
    load_head(v, y + uint64_t(item) * a.dim, a.dim);
    const float product = dot(d, v);
    const uint32_t end = a.last[row] > a.first[row] ? row + 1 : 0;
    for (uint32_t seen = first_seen(a, row); seen < end; ++seen) {
        const uint64_t at = (uint64_t(seen) * a.kv_heads + kv_head) * a.dim;
        load_head(k, a.k + at, a.dim);
        load_head(v, a.v + at, a.dim);
        const float weight = expf(dot(q, k) * a.scale - log_sums[item]);
        add(sum, weight * (dot(d, v) - product), k);
    }
    store_head(dq + uint64_t(item) * a.dim, sum, a.dim, a.scale);
    if (threadIdx.x % WARP == 0) products[item] = product;
}

// Backward pass, second part: the gradients of keys and values. One row and KV head per warp.
NAMED_KERNEL(causal_attention_dkv, float *dk, float *dv, const float *log_sums, const float *dy,
             const float *products, CausalAttention a) {
    const uint32_t item = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (item >= a.rows * a.kv_heads) return;
    const uint32_t row = item / a.kv_heads, kv_head = item % a.kv_heads,
                   group = a.heads / a.kv_heads;
    float k[CAUSAL_DIMS], v[CAUSAL_DIMS], q[CAUSAL_DIMS], d[CAUSAL_DIMS];
    float to_k[CAUSAL_DIMS] = {}, to_v[CAUSAL_DIMS] = {};
    load_head(k, a.k + uint64_t(item) * a.dim, a.dim);
    load_head(v, a.v + uint64_t(item) * a.dim, a.dim);
    // Rows that attend to this one: `row..end`, limited by the sequence and the window.
    const uint32_t left = a.last[row] > row ? a.last[row] - row : 0;
    const uint32_t end = a.last[row] > a.first[row] ? row + (left < a.window ? left : a.window) : 0;
    for (uint32_t query = row; query < end; ++query)
        for (uint32_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            const uint64_t at = uint64_t(query) * a.heads + head;
            load_head(q, a.q + at * a.dim, a.dim);
            load_head(d, dy + at * a.dim, a.dim);
            const float weight = expf(dot(q, k) * a.scale - log_sums[at]);
            add(to_v, weight, d);
            add(to_k, weight * (dot(d, v) - products[at]), q);
        }
    store_head(dk + uint64_t(item) * a.dim, to_k, a.dim, a.scale);
    store_head(dv + uint64_t(item) * a.dim, to_v, a.dim, 1.f);
}
