// Token sampling from rows of logits, which are in float for every dtype of the base.
#pragma once

// How one token is sampled: greedily if the temperature is 0. `present/sample.rs` has the same
// struct.
struct SamplingParams {
    double random;
    float temperature, min_p, top_p;
    uint32_t top_k, row, padding;
};

constexpr uint32_t NO_TOKEN = 0xffffffffu;
constexpr uint32_t MAX_WARPS = 32;

// Sum over a block. All threads get it. The order is irrelevant for integers.
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

// Token of the greatest finite logit of a row, the first among equals, for all threads; NO_TOKEN if
// there is none.
__device__ inline uint32_t greatest(const float *logits, uint32_t vocabulary) {
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

// Distribution of a row. The weight of a token is relative to the likeliest token, which has 1. Its
// key is the bits of the weight, which have the same order. Its mass is the weight in units of
// 2^-40, an integer, so that sums do not depend on their order.
struct Row {
    const uint32_t *keys;
    uint32_t vocabulary;

    __device__ uint32_t key(uint32_t token) const { return keys[token]; }

    static __device__ uint64_t mass(uint32_t key) {
        return uint64_t(__uint_as_float(key) * 0x1p40f);
    }

    // The sum of `measure(key)` over all tokens.
    template <typename Measure>
    __device__ uint64_t sum(Measure measure) const {
        uint64_t part = 0;
        for (uint32_t i = threadIdx.x; i < vocabulary; i += blockDim.x) part += measure(key(i));
        return total_over_block(part);
    }

    // The greatest key for which the tokens from it on reach `wanted`, as `from(key)` measures
    // them.
    template <typename From>
    static __device__ uint32_t lightest(uint64_t wanted, From from) {
        uint32_t key = 0;
        for (uint32_t bit = 1u << 29; bit > 0;
             bit /= 2)  // weights are at most 1, whose bits are below 2^30
            if (from(key | bit) >= wanted) key |= bit;
        return key;
    }
};

// Tokens of a distribution that are kept: those whose keys are above `key`, and the first `ties` of
// those whose key it is.
struct Kept {
    uint32_t key, ties;
};

__device__ inline Kept kept_of(const Row &row, const SamplingParams &params) {
    const uint32_t least = params.min_p > 0.f ? __float_as_uint(params.min_p) : 0; // -0 counts as 0
    Kept kept{least > 0 ? least - 1 : 0, 0};
    const auto count_from = [&](uint32_t first) {
        first = max(first, kept.key + 1);
        return row.sum([&](uint32_t key) { return uint64_t(key >= first); });
    };
    if (params.top_k < row.vocabulary && count_from(0) > params.top_k) {
        const uint32_t key = Row::lightest(params.top_k, count_from);
        kept = {key, params.top_k - uint32_t(count_from(key + 1))};
    }
    if (params.top_p < 1.f) {
        const auto mass_from = [&](uint32_t first) {
            const uint64_t above = row.sum(
                [&](uint32_t key) { return key >= first && key > kept.key ? Row::mass(key) : 0; });
            return above + (first <= kept.key ? kept.ties * Row::mass(kept.key) : 0);
        };
        const uint64_t wanted =
            max(uint64_t(ceil(double(mass_from(0)) * params.top_p)), uint64_t(1));
        const uint32_t key = Row::lightest(wanted, mass_from);
        const uint64_t left = wanted - mass_from(key + 1), each = Row::mass(key);
        const uint64_t ties = (left + each - 1) / each;
        kept = {key, key == kept.key ? min(kept.ties, uint32_t(ties)) : uint32_t(ties)};
    }
    return kept;
}

// Calls `visit(token, mass)` for the tokens `first..last`, WARP at a time in ascending order, one
// per lane. Tokens that are not kept have mass 0. `ties` is the number of tied tokens before
// `first`. Stops when a visit returns true, which it must do on all lanes alike.
template <typename Visit>
__device__ inline void walk(const Row &row, Kept kept, uint32_t first, uint32_t last, uint32_t ties,
                            Visit visit) {
    const uint32_t lane = threadIdx.x % WARP;
    for (uint32_t start = first; start < last; start += WARP) {
        const uint32_t token = start + lane, key = token < last ? row.key(token) : 0;
        const bool tied = key == kept.key && key > 0;
        const uint32_t all_tied = __ballot_sync(ALL_LANES, tied);
        const uint32_t rank = ties + __popc(all_tied & ((1u << lane) - 1));
        ties += __popc(all_tied);
        const bool stays = key > kept.key || (tied && rank < kept.ties);
        if (visit(token, stays ? Row::mass(key) : 0)) return;
    }
}

// Samples from the kept tokens, in ascending order.
__device__ inline uint32_t draw(const Row &row, Kept kept, double random) {
    __shared__ uint64_t masses[MAX_WARPS];
    __shared__ uint32_t ties[MAX_WARPS];
    __shared__ uint32_t drawn;
    const uint32_t warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t first = uint64_t(row.vocabulary) * warp / warps;
    const uint32_t last = uint64_t(row.vocabulary) * (warp + 1) / warps;
    uint32_t tied = 0;
    for (uint32_t i = first + lane; i < last; i += WARP) tied += row.key(i) == kept.key;
    for (uint32_t step = WARP / 2; step > 0; step /= 2)
        tied += __shfl_xor_sync(ALL_LANES, tied, step);
    if (lane == 0) ties[warp] = tied;
    __syncthreads();
    uint32_t ties_before = 0;
    for (uint32_t w = 0; w < warp; ++w) ties_before += ties[w];
    uint64_t mass = 0;
    walk(row, kept, first, last, ties_before,
         [&](uint32_t, uint64_t own) { return mass += own, false; });
    for (uint32_t step = WARP / 2; step > 0; step /= 2)
        mass += __shfl_xor_sync(ALL_LANES, mass, step);
    if (lane == 0) masses[warp] = mass;
    __syncthreads();
    uint64_t total = 0, before = 0;
    for (uint32_t w = 0; w < warps; ++w) before += w < warp ? masses[w] : 0, total += masses[w];
    const uint64_t wanted = min(uint64_t(random * double(total)), total - 1);
    if (before <= wanted && wanted < before + mass)
        walk(row, kept, first, last, ties_before, [&](uint32_t token, uint64_t own) {
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

// Samples one token per block. `keys` has room for a row per block, if any of them is sampled at
// random.
NAMED_KERNEL(sample, uint32_t *tokens, uint32_t *keys, const float *logits,
             const SamplingParams *all, uint32_t vocabulary) {
    const SamplingParams params = all[blockIdx.x];
    logits += uint64_t(params.row) * vocabulary;
    uint32_t token = greatest(logits, vocabulary);
    if (token != NO_TOKEN && params.temperature > 0.f) {
        const float most = logits[token];
        keys += uint64_t(blockIdx.x) * vocabulary;
        for (uint32_t i = threadIdx.x; i < vocabulary; i += blockDim.x) {
            // Comparisons with NaN are false.
            const bool weighs = logits[i] > -INFINITY && logits[i] <= most;
            keys[i] = weighs ? __float_as_uint(expf((logits[i] - most) / params.temperature)) : 0;
        }
        __syncthreads();
        const Row row{keys, vocabulary};
        token = draw(row, kept_of(row, params), params.random);
    }
    if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}
