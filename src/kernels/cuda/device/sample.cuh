// Token sampling from rows of logits; logits are float for every dtype of the base.
#pragma once

// Sampling parameters of one token; temperature 0 means greedy. `present/sample.rs` has the same
// struct.
struct SamplingParams {
    double random;
    float temperature, min_p, top_p;
    uint32_t top_k, row, padding;
};

constexpr uint32_t NO_TOKEN = 0xffffffffu;
constexpr uint32_t MAX_WARPS = 32;

// Sum over a block, returned to all threads. Integer sums do not depend on their order.
__device__ inline uint64_t total_over_block(uint64_t v) {
    __shared__ uint64_t sums[MAX_WARPS];
    for (uint32_t step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    __syncthreads(); // an earlier sum may still be read
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = v;
    __syncthreads();
    uint64_t total = 0;
    for (uint32_t warp = 0; warp < blockDim.x / WARP; ++warp) total += sums[warp];
    return total;
}

// Token with the largest finite logit of a row (the first among equals), returned to all threads;
// NO_TOKEN if no logit is finite.
__device__ inline uint32_t argmax(const float *logits, uint32_t vocabulary) {
    __shared__ float values[MAX_WARPS];
    __shared__ uint32_t tokens[MAX_WARPS];
    float best = -INFINITY;
    uint32_t token = NO_TOKEN;
    for (uint32_t i = threadIdx.x; i < vocabulary; i += blockDim.x)
        if (logits[i] > best && logits[i] < INFINITY) best = logits[i], token = i;
    const auto take = [&](float value, uint32_t other) {
        if (value > best || (value == best && other < token)) best = value, token = other;
    };
    for (uint32_t step = WARP / 2; step > 0; step /= 2) {
        const float value = __shfl_xor_sync(ALL_LANES, best, step);
        take(value, __shfl_xor_sync(ALL_LANES, token, step));
    }
    if (threadIdx.x % WARP == 0)
        values[threadIdx.x / WARP] = best, tokens[threadIdx.x / WARP] = token;
    __syncthreads();
    for (uint32_t warp = 0; warp < blockDim.x / WARP; ++warp) take(values[warp], tokens[warp]);
    return token;
}

// Distribution of a row. A token's weight is its probability relative to the likeliest token, which
// has weight 1. Its key is the bit pattern of the weight, which sorts like the weight. Its mass is
// the weight in units of 2^-40: an integer, so that sums do not depend on their order.
struct Row {
    const uint32_t *keys;
    uint32_t vocabulary;

    __device__ uint32_t key(uint32_t token) const { return keys[token]; }

    static __device__ uint64_t mass(uint32_t key) {
        return uint64_t(__uint_as_float(key) * 0x1p40f);
    }

    // Sum of `measure(key)` over all tokens.
    template <typename Measure>
    __device__ uint64_t sum(Measure measure) const {
        uint64_t part = 0;
        for (uint32_t i = threadIdx.x; i < vocabulary; i += blockDim.x) part += measure(key(i));
        return total_over_block(part);
    }

    // Largest key whose tokens at or above it sum to at least `wanted`; `sum_from(key)` is that
    // sum.
    template <typename SumFrom>
    static __device__ uint32_t threshold_key(uint64_t wanted, SumFrom sum_from) {
        uint32_t key = 0;
        // Weights are at most 1, and the bit pattern of 1 is below 2^30.
        for (uint32_t bit = 1u << 29; bit > 0; bit /= 2)
            if (sum_from(key | bit) >= wanted) key |= bit;
        return key;
    }
};

// The tokens that remain after min_p, top_k and top_p: all with keys above `key`, and the first
// `ties` of those with exactly this key.
struct Filter {
    uint32_t key, ties;
};

__device__ inline Filter filter_of(const Row &row, const SamplingParams &params) {
    // A min_p of -0 counts as 0.
    const uint32_t min_key = params.min_p > 0.f ? __float_as_uint(params.min_p) : 0;
    Filter filter{min_key > 0 ? min_key - 1 : 0, 0};
    const auto count_from = [&](uint32_t first) {
        first = max(first, filter.key + 1);
        return row.sum([&](uint32_t key) { return uint64_t(key >= first); });
    };
    if (params.top_k < row.vocabulary && count_from(0) > params.top_k) {
        const uint32_t key = Row::threshold_key(params.top_k, count_from);
        filter = {key, params.top_k - uint32_t(count_from(key + 1))};
    }
    if (params.top_p < 1.f) {
        const auto mass_from = [&](uint32_t first) {
            const uint64_t above = row.sum([&](uint32_t key) {
                return key >= first && key > filter.key ? Row::mass(key) : 0;
            });
            return above + (first <= filter.key ? filter.ties * Row::mass(filter.key) : 0);
        };
        const uint64_t wanted =
            max(uint64_t(ceil(double(mass_from(0)) * params.top_p)), uint64_t(1));
        const uint32_t key = Row::threshold_key(wanted, mass_from);
        const uint64_t left = wanted - mass_from(key + 1), each = Row::mass(key);
        const uint64_t ties = (left + each - 1) / each;
        filter = {key, key == filter.key ? min(filter.ties, uint32_t(ties)) : uint32_t(ties)};
    }
    return filter;
}

// Calls `visit(token, mass)` for the tokens `first..last` in ascending order, one per lane. Tokens
// outside the filter have mass 0. `ties` is the number of tied tokens before `first`. All lanes
// participate; stops when `visit` returns true, which it must do on all lanes at once.
template <typename Visit>
__device__ inline void for_each_token(const Row &row, Filter filter, uint32_t first,
                                      uint32_t last, uint32_t ties, Visit visit) {
    const uint32_t lane = threadIdx.x % WARP;
    for (uint32_t start = first; start < last; start += WARP) {
        const uint32_t token = start + lane, key = token < last ? row.key(token) : 0;
        const bool tied = key == filter.key && key > 0;
        const uint32_t all_tied = __ballot_sync(ALL_LANES, tied);
        const uint32_t rank = ties + __popc(all_tied & ((1u << lane) - 1));
        ties += __popc(all_tied);
        const bool stays = key > filter.key || (tied && rank < filter.ties);
        if (visit(token, stays ? Row::mass(key) : 0)) return;
    }
}

// Samples one of the remaining tokens: the one whose interval of cumulative mass, in ascending
// token order, contains `random` times the total.
__device__ inline uint32_t draw(const Row &row, Filter filter, double random) {
    __shared__ uint64_t masses[MAX_WARPS];
    __shared__ uint32_t ties[MAX_WARPS];
    __shared__ uint32_t drawn;
    const uint32_t warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t first = uint64_t(row.vocabulary) * warp / warps;
    const uint32_t last = uint64_t(row.vocabulary) * (warp + 1) / warps;
    uint32_t tied = 0;
    for (uint32_t i = first + lane; i < last; i += WARP) tied += row.key(i) == filter.key;
    for (uint32_t step = WARP / 2; step > 0; step /= 2)
        tied += __shfl_xor_sync(ALL_LANES, tied, step);
    if (lane == 0) ties[warp] = tied;
    __syncthreads();
    uint32_t ties_before = 0;
    for (uint32_t w = 0; w < warp; ++w) ties_before += ties[w];
    uint64_t mass = 0;
    for_each_token(row, filter, first, last, ties_before,
                   [&](uint32_t, uint64_t own) { return mass += own, false; });
    for (uint32_t step = WARP / 2; step > 0; step /= 2)
        mass += __shfl_xor_sync(ALL_LANES, mass, step);
    if (lane == 0) masses[warp] = mass;
    __syncthreads();
    uint64_t total = 0, before = 0;
    for (uint32_t w = 0; w < warps; ++w) before += w < warp ? masses[w] : 0, total += masses[w];
    const uint64_t wanted = min(uint64_t(random * double(total)), total - 1);
    if (before <= wanted && wanted < before + mass)
        for_each_token(row, filter, first, last, ties_before, [&](uint32_t token, uint64_t own) {
            uint64_t group = own;
            for (uint32_t step = WARP / 2; step > 0; step /= 2)
                group += __shfl_xor_sync(ALL_LANES, group, step);
            if (before + group <= wanted) return before += group, false;
            for (uint32_t other = 0; other < WARP; ++other) {
                const uint64_t next = before + __shfl_sync(ALL_LANES, own, other);
                if (lane == other && before <= wanted && wanted < next) drawn = token;
                before = next;
            }
            return true;
        });
    __syncthreads();
    return drawn;
}

// Samples one token per block. `keys` is scratch space for one row per block; it may be empty if
// all rows are sampled greedily.
NAMED_KERNEL(sample, uint32_t *tokens, uint32_t *keys, const float *logits,
             const SamplingParams *all, uint32_t vocabulary) {
    const SamplingParams params = all[blockIdx.x];
    logits += uint64_t(params.row) * vocabulary;
    uint32_t token = argmax(logits, vocabulary);
    if (token != NO_TOKEN && params.temperature > 0.f) {
        const float max_logit = logits[token];
        keys += uint64_t(blockIdx.x) * vocabulary;
        for (uint32_t i = threadIdx.x; i < vocabulary; i += blockDim.x) {
            // NaN fails both comparisons.
            const bool counts = logits[i] > -INFINITY && logits[i] <= max_logit;
            const float exponent = (logits[i] - max_logit) / params.temperature;
            keys[i] = counts ? __float_as_uint(expf(exponent)) : 0;
        }
        __syncthreads();
        const Row row{keys, vocabulary};
        token = draw(row, filter_of(row, params), params.random);
    }
    if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}
