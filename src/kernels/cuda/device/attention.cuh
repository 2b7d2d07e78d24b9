// Causal attention over a blocked KV cache, with grouped queries and a sliding window, for decoding
// and chunked prefill. As in FlashDecoding, the positions are split into parts, which are processed
// separately, then combined by their softmax sums.
//
// A layer's keys are `[blocks, kv heads, dim, KV_BLOCK]`, its values `[blocks, kv heads, KV_BLOCK,
// dim]`. Parts, and the blocks of each warp, are counted from the start of the sequence, so a row's
// summation order does not depend on its batch.

#ifndef TOMBOLA_ATTENTION
#define TOMBOLA_ATTENTION
// Consecutive rows of one sequence. `present/attention.rs` has the same struct.
struct Tile {
    uint32_t first_row, rows;
    uint32_t first_position;
    uint32_t first_block; // index of the sequence's first block in `block_tables`
};

constexpr uint32_t ATTENTION_WARPS = 4;

// Transposing reduction of a block's scores. On entry each lane holds, for the 8 positions from
// `8 * (lane % 2)`, partial sums over some dims; it returns the score of `position_of(lane)`.
__device__ inline float gather_score(float (&s)[8]) {
    const uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (uint32_t half = 4; half > 0; half /= 2) {
        const bool upper = lane & (half * 4);
#pragma unroll
        for (uint32_t j = 0; j < half; ++j) {
            const float sent = upper ? s[j] : s[j + half];
            const float kept = upper ? s[j + half] : s[j];
            s[j] = kept + __shfl_xor_sync(ALL_LANES, sent, half * 4);
        }
    }
    return s[0] + __shfl_xor_sync(ALL_LANES, s[0], 2);
}

__device__ inline uint32_t position_of(uint32_t lane) {
    return 8 * (lane & 1) + (lane >> 2 & 4) + (lane >> 2 & 2) + (lane >> 2 & 1);
}

__device__ inline uint32_t lane_of(uint32_t position) {
    return (position >> 3 & 1) | (position & 7) << 2;
}

// Running softmax: the maximum score and the sum of weights relative to it.
struct Softmax {
    float most = -INFINITY, sum = 0.f;

    // Adds a block of scores, one per lane, and replaces `score` with its weight. Returns the
    // factor that rescales earlier sums.
    __device__ float take(float &score) {
        float best = score, weights;
        for (uint32_t step : {16u, 8u, 4u, 1u})
            best = fmaxf(best, __shfl_xor_sync(ALL_LANES, best, step));
        best = fmaxf(best, most);
        const float kept = best == -INFINITY ? 1.f : __expf(most - best);
        score = weights = score == -INFINITY ? 0.f : __expf(score - best);
        for (uint32_t step : {16u, 8u, 4u, 1u})
            weights += __shfl_xor_sync(ALL_LANES, weights, step);
        sum = sum * kept + weights;
        most = best;
        return kept;
    }
};

// Arguments of `attend`.
template <typename V>
struct Attention {
    V *y;           // [rows, heads, dim]
    float *parts;   // [rows, heads, parts, dim + 2], or null for a single part
    const V *queries;
    uint64_t query_stride; // between rows
    const V *keys, *values;
    const Tile *tiles;
    const uint32_t *block_tables;
    uint32_t group, kv_heads, dim, window;
    uint32_t per_part; // positions per part, a multiple of KV_BLOCK
    float scale;
};

// Attention of one tile, KV head and part. Grid: (tiles, kv heads, parts), blocks of
// ATTENTION_WARPS warps. A tile has at most QUERIES queries (rows times `group`); `dim` is a
// multiple of DIMS and at most `DIMS * 32`.
template <uint32_t QUERIES, uint32_t DIMS, typename V>
__device__ inline void attend(const Attention<V> &a) {
    __shared__ float queries[QUERIES][DIMS * WARP];
    __shared__ float sums[ATTENTION_WARPS][QUERIES][DIMS * WARP];
    __shared__ float most[ATTENTION_WARPS][QUERIES], total[ATTENTION_WARPS][QUERIES];
    const Tile tile = a.tiles[blockIdx.x];
    const uint32_t kv_head = blockIdx.y, part = blockIdx.z, dim = a.dim;
    const uint32_t count = tile.rows * a.group, heads = a.kv_heads * a.group;
    const uint32_t end = tile.first_position + tile.rows;
    if (uint64_t(part) * a.per_part >= end) { // the part is past the end of this sequence
        for (uint32_t q = threadIdx.x; q < count; q += blockDim.x) {
            const uint64_t row = tile.first_row + q / a.group;
            const uint64_t result = row * heads + kv_head * a.group + q % a.group;
            float *to = a.parts + (result * gridDim.z + part) * (dim + 2);
            to[dim] = -INFINITY, to[dim + 1] = 0.f;
        }
        return;
    }
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

    for (uint32_t i = threadIdx.x; i < count * dim; i += blockDim.x) {
        const uint32_t query = i / dim, d = i % dim;
        const uint64_t row = tile.first_row + query / a.group;
        const uint32_t head = kv_head * a.group + query % a.group;
        queries[query][d] =
            widen(a.queries[row * a.query_stride + uint64_t(head) * dim + d]) * a.scale;
    }
    __syncthreads();

    // Blocks of the part that at least one row attends to.
    const uint32_t start = tile.first_position >= a.window ? tile.first_position + 1 - a.window : 0;
    const uint32_t per_part = a.per_part / KV_BLOCK;
    const uint32_t last = min((end + KV_BLOCK - 1) / KV_BLOCK, (part + 1) * per_part);
    uint32_t block = max(start / KV_BLOCK, part * per_part);
    block += (warp + ATTENTION_WARPS - block % ATTENTION_WARPS) % ATTENTION_WARPS;

    Softmax softmax[QUERIES];
    float acc[QUERIES][DIMS] = {};
    for (; block < last; block += ATTENTION_WARPS) {
        const uint64_t at =
            uint64_t(a.block_tables[tile.first_block + block]) * a.kv_heads + kv_head;
        const V *keys = a.keys + at * dim * KV_BLOCK, *values = a.values + at * dim * KV_BLOCK;
        float scores[QUERIES][8] = {};
        for (uint32_t d = lane / 2; d < dim; d += WARP / 2) {
            float k[8];
            load(k, keys + d * KV_BLOCK + lane % 2 * 8);
#pragma unroll
            for (uint32_t q = 0; q < QUERIES; ++q) {
                const float factor = q < count ? queries[q][d] : 0.f;
#pragma unroll
                for (uint32_t j = 0; j < 8; ++j) scores[q][j] += factor * k[j];
            }
        }
        float weights[QUERIES];
        const uint32_t position = block * KV_BLOCK + position_of(lane);
#pragma unroll
        for (uint32_t q = 0; q < QUERIES; ++q) {
            if (q >= count) break;
            const uint32_t own = tile.first_position + q / a.group;
            const float score = gather_score(scores[q]);
            weights[q] = position <= own && own - position < a.window ? score : -INFINITY;
            const float kept = softmax[q].take(weights[q]);
#pragma unroll
            for (uint32_t i = 0; i < DIMS; ++i) acc[q][i] *= kept;
        }
        for (uint32_t p = 0; p < KV_BLOCK; ++p) {
            float v[DIMS] = {};
            // Unwritten positions at the end of a block have weight 0 but may hold NaN, so they are
            // not read.
            const bool written = block * KV_BLOCK + p < end;
            if (written && lane * DIMS < dim) load(v, values + p * dim + lane * DIMS);
#pragma unroll
            for (uint32_t q = 0; q < QUERIES; ++q) {
                if (q >= count) break;
                const float weight = __shfl_sync(ALL_LANES, weights[q], lane_of(p));
#pragma unroll
                for (uint32_t i = 0; i < DIMS; ++i) acc[q][i] += weight * v[i];
            }
        }
    }

    for (uint32_t q = 0; q < QUERIES && q < count; ++q) {
        for (uint32_t i = 0; i < DIMS; ++i) sums[warp][q][lane * DIMS + i] = acc[q][i];
        if (lane == 0) most[warp][q] = softmax[q].most, total[warp][q] = softmax[q].sum;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < count * dim; i += blockDim.x) {
        const uint32_t q = i / dim, d = i % dim;
        float best = -INFINITY, sum = 0.f, value = 0.f;
        for (uint32_t w = 0; w < ATTENTION_WARPS; ++w) best = fmaxf(best, most[w][q]);
        for (uint32_t w = 0; w < ATTENTION_WARPS; ++w) {
            const float share = most[w][q] == -INFINITY ? 0.f : __expf(most[w][q] - best);
            sum += share * total[w][q];
            value += share * sums[w][q][d];
        }
        const uint64_t row = tile.first_row + q / a.group;
        const uint64_t result = row * heads + kv_head * a.group + q % a.group;
        if (a.parts == nullptr) {
            store(a.y + result * dim + d, value / sum);
        } else {
            float *to = a.parts + (result * gridDim.z + part) * (dim + 2);
            to[d] = value;
            if (d == 0) to[dim] = best, to[dim + 1] = sum;
        }
    }
}
#endif

#define ATTENTION(QUERIES, DIMS)                                                                   \
    KERNEL(attention_##QUERIES##x##DIMS, T *y, float *parts, const T *queries,                     \
           uint64_t query_stride, const T *keys, const T *values, const Tile *tiles,               \
           const uint32_t *block_tables, uint32_t group, uint32_t kv_heads, uint32_t dim,          \
           uint32_t window, uint32_t per_part, float scale) {                                      \
        attend<QUERIES, DIMS>(Attention<T>{y, parts, queries, query_stride, keys, values, tiles,   \
                                           block_tables, group, kv_heads, dim, window, per_part,   \
                                           scale});                                                \
    }
ATTENTION(1, 2)
ATTENTION(8, 2)
ATTENTION(1, 4)
ATTENTION(8, 4)
ATTENTION(1, 8)
ATTENTION(8, 8)
#undef ATTENTION

// Combines the parts of each row and head. One block per row and head.
KERNEL(attention_combine, T *y, const float *parts, uint32_t count, uint32_t dim) {
    const float *from = parts + uint64_t(blockIdx.x) * count * (dim + 2);
    float best = -INFINITY, sum = 0.f;
    for (uint32_t part = 0; part < count; ++part) best = fmaxf(best, from[part * (dim + 2) + dim]);
    for (uint32_t part = 0; part < count; ++part) {
        const float *partial = from + part * (dim + 2);
        sum += partial[dim] == -INFINITY ? 0.f : __expf(partial[dim] - best) * partial[dim + 1];
    }
    for (uint32_t d = threadIdx.x; d < dim; d += blockDim.x) {
        float value = 0.f;
        for (uint32_t part = 0; part < count; ++part) {
            const float *partial = from + part * (dim + 2);
            value += partial[dim] == -INFINITY ? 0.f : __expf(partial[dim] - best) * partial[d];
        }
        store(y + uint64_t(blockIdx.x) * dim + d, value / sum);
    }
}
