// Tests of the kernels' logic on the host: under sanitizers, against naive loops, without a build
// of feature `cuda`. (`src/kernels/cuda/present/tests/` needs such a build; those tests compare the
// GPU's kernels with the CPU's over random shapes.)
//
//   g++ -std=c++20 -g -ffp-contract=off -fsanitize=address,undefined \
//       -I CUDA/include -I src/kernels/cuda/device tests/cuda/kernels.cpp
#include "emulation.h"
#include "kernels.cu"

#include <random>

namespace {
std::mt19937 generator(1);
int failures = 0;

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition), ++failures; \
    } while (0)

float uniform() { return std::uniform_real_distribution<float>(-1, 1)(generator); }

template <typename V>
std::vector<V> random(size_t n) {
    std::vector<V> values(n);
    for (V &value : values) store(&value, uniform());
    return values;
}

// Whether a result in V is close to the reference in double: relative and absolute tolerance 1e-5
// for float, 1/64 for 16-bit dtypes.
template <typename V>
bool near(V got, double want) {
    const double tolerance = sizeof(V) == 4 ? 1e-5 : 1.0 / 64;
    return std::abs(widen(got) - want) <= tolerance * (1 + std::abs(want));
}

template <typename V>
const char *suffix();
template <>
const char *suffix<float>() { return "_f32"; }
template <>
const char *suffix<__nv_bfloat16>() { return "_bf16"; }
template <>
const char *suffix<__half>() { return "_f16"; }

// Launches a kernel by name. The arguments must have exactly the types of its parameters.
template <typename... Arguments>
void run(const std::string &name, dim3 grid, uint32_t threads, size_t shared,
         Arguments... arguments) {
    void *pointers[] = {&arguments...};
    emulation::kernels().at(name)(grid, {threads}, shared, pointers)();
}

// Random CSR matrix with nonzeros in its first and last corner; every fifth row is empty.
template <typename Column, typename Value>
struct Csr {
    std::vector<uint32_t> offsets{0};
    std::vector<Column> columns;
    std::vector<Value> values;

    Csr(uint32_t rows, uint32_t inner, float density) {
        for (uint32_t row = 0; row < rows; ++row) {
            for (uint32_t column = 0; column < inner; ++column) {
                const bool corner =
                    (row == 0 && column == 0) || (row == rows - 1 && column == inner - 1);
                if (!corner && (row % 5 == 3 || uniform() > 2 * density - 1)) continue;
                columns.push_back(column);
                values.push_back({});
                store(&values.back(), uniform());
            }
            offsets.push_back(columns.size());
        }
    }

    Deltas deltas(uint32_t lanes) const {
        const uint32_t kinds =
            (sizeof(Column) == 4 ? WIDE_COLUMNS : 0) | (sizeof(Value) == 4 ? WIDE_VALUES : 0);
        return {offsets.data(), columns.data(), values.data(), kinds, lanes};
    }

    template <typename Visit>
    void each(Visit visit) const {
        for (uint32_t row = 0; row + 1 < offsets.size(); ++row)
            for (uint32_t k = offsets[row]; k < offsets[row + 1]; ++k)
                visit(row, columns[k], widen(values[k]), k);
    }
};

template <typename V>
void apply_and_revert() {
    // A weight that needs several blocks, a small one, and a single row.
    const Csr<uint16_t, __nv_bfloat16> a(41, 96, 0.7f);
    const Csr<uint32_t, float> b(7, 30, 0.1f), c(1, 5, 0.5f);
    const uint32_t shapes[][2] = {{41, 96}, {7, 30}, {1, 5}};
    const Deltas deltas[] = {a.deltas(4), b.deltas(4), c.deltas(4)};
    std::vector<V> weights[3], before[3];
    std::vector<AppliedWeight> applied;
    uint64_t saved_count = 0;
    uint32_t blocks = 0;
    for (int i = 0; i < 3; ++i) {
        const auto [rows, inner] = shapes[i];
        before[i] = weights[i] = random<V>(rows * inner);
        const uint32_t nonzeros = deltas[i].row_offsets[rows], own = (nonzeros + CHUNK - 1) / CHUNK;
        applied.push_back({weights[i].data(), deltas[i], saved_count, rows, inner, blocks, own});
        saved_count += nonzeros, blocks += own;
    }
    std::vector<V> saved(saved_count);
    const float scale = 0.7f;
    const AppliedWeight *table = applied.data();
    run(std::string("ticket_apply") + suffix<V>(), blocks, 64, 0, table, uint32_t(3), saved.data(),
        scale);
    std::vector<V> want[3] = {before[0], before[1], before[2]};
    const auto apply = [&](int i, const auto &csr) {
        csr.each([&](uint32_t row, uint32_t column, float value, uint32_t) {
            V &weight = want[i][row * shapes[i][1] + column];
            const float product = scale * value;
            store(&weight, widen(weight) + product);
        });
        CHECK(!std::memcmp(want[i].data(), weights[i].data(), want[i].size() * sizeof(V)));
    };
    apply(0, a), apply(1, b), apply(2, c);
    const V *kept = saved.data();
    run(std::string("ticket_revert") + suffix<V>(), blocks, 64, 0, table, uint32_t(3), kept);
    for (int i = 0; i < 3; ++i)
        CHECK(!std::memcmp(before[i].data(), weights[i].data(), before[i].size() * sizeof(V)));
}

template <typename V>
void overlays(uint32_t lanes, bool staged) {
    const uint32_t out = 37, inner = 70, batch = 60;
    const Csr<uint16_t, __nv_bfloat16> one(out, inner, 0.3f);
    const Csr<uint32_t, float> other(out, inner, 0.05f);
    // Neither ticket touches weight 0.
    const Deltas tickets[2][2] = {{{}, one.deltas(lanes)}, {{}, other.deltas(4)}};
    const Segment segments[] = {{nullptr, 0, 1, 0.f, 0},
                                {tickets[0], 1, 6, 1.5f, 0},
                                {tickets[1], 7, 1, -1.f, 0},
                                {nullptr, 8, 52, 0.f, 0},
                                {nullptr, 0, 0, 0.f, 0}};
    const auto x = random<V>(batch * inner);
    const auto y = random<float>(batch * out);
    std::vector<V> bare(y.size()), sums(y.size());
    for (size_t i = 0; i < y.size(); ++i) store(&bare[i], y[i]);
    std::vector<double> want(y.begin(), y.end());
    const auto add = [&](const auto &csr, const Segment &segment) {
        for (uint32_t row = segment.first_row; row < segment.first_row + segment.rows; ++row)
            csr.each([&](uint32_t o, uint32_t column, float value, uint32_t) {
                want[row * out + o] +=
                    double(segment.scale) * value * widen(x[row * inner + column]);
            });
    };
    add(one, segments[1]), add(other, segments[2]);
    const uint32_t at_once = staged ? 3 : 4;
    const V *input = x.data();
    const float *product = y.data();
    const Segment *table = segments;
    const size_t shared = staged ? at_once * inner * sizeof(float) : 0;
    const auto overlay = [&](uint32_t weight) {
        std::memset(sums.data(), 0xff, sums.size() * sizeof(V));
        run(std::string("overlay") + suffix<V>(), dim3(3, 5), 64, shared, sums.data(), product,
            input, table, weight, inner, out, at_once, uint32_t(staged));
    };
    overlay(0);
    CHECK(!std::memcmp(sums.data(), bare.data(), sums.size() * sizeof(V)));
    overlay(1);
    for (size_t i = 0; i < sums.size(); ++i) CHECK(near(sums[i], want[i]));
    for (uint32_t row : {0u, 8u, 59u})
        CHECK(!std::memcmp(&sums[row * out], &bare[row * out], out * sizeof(V)));

    std::vector<V> dense(out * inner), expected(out * inner);
    std::memset(dense.data(), 0, dense.size() * sizeof(V));
    std::memset(expected.data(), 0, dense.size() * sizeof(V));
    one.each([&](uint32_t row, uint32_t column, float value, uint32_t) {
        store(&expected[row * inner + column], 2 * value);
    });
    const Deltas *ticket = tickets[0];
    run(std::string("overlay_expand") + suffix<V>(), 1, 256, 0, dense.data(), ticket, uint32_t(1),
        inner, out, 2.f);
    CHECK(!std::memcmp(dense.data(), expected.data(), dense.size() * sizeof(V)));
}

// Attention of one sequence, with its last `rows` positions as queries, in tiles of `at_once` rows.
template <typename V>
void attention(const char *kernel, uint32_t positions, uint32_t rows, uint32_t at_once,
               uint32_t group, uint32_t dim, uint32_t window) {
    const uint32_t kv_heads = 2, heads = kv_heads * group,
                   blocks = (positions + KV_BLOCK - 1) / KV_BLOCK;
    const float scale = 0.4f;
    // Unwritten positions are NaN.
    const uint64_t half = blocks * kv_heads * dim * KV_BLOCK;
    std::vector<V> cache(2 * half);
    for (V &value : cache) store(&value, NAN);
    std::vector<uint32_t> table(blocks);
    for (uint32_t i = 0; i < blocks; ++i) table[i] = blocks - 1 - i;
    // The keys and values of a row are adjacent, in a wider row, as in a fused product.
    const uint64_t own = kv_heads * dim, stride = 2 * own + dim;
    const auto fresh = random<V>(positions * stride);
    std::vector<uint32_t> slots(positions);
    for (uint32_t p = 0; p < positions; ++p)
        slots[p] = table[p / KV_BLOCK] * KV_BLOCK + p % KV_BLOCK;
    const V *fresh_data = fresh.data();
    const uint32_t *slots_data = slots.data();
    run(std::string("kv_write") + suffix<V>(), positions, 32, 0, cache.data(), half, fresh_data,
        stride, slots_data, kv_heads, dim);

    // The queries are part of a wider row too.
    const uint64_t query_stride = heads * dim + 3 * dim;
    const auto queries = random<V>(rows * query_stride);
    std::vector<Tile> tiles;
    for (uint32_t row = 0; row < rows; row += at_once)
        tiles.push_back({row, std::min(at_once, rows - row), positions - rows + row, 0});
    const uint32_t per_part = 256, parts = (positions + per_part - 1) / per_part;
    std::vector<V> y(rows * heads * dim);
    std::vector<float> scratch(parts > 1 ? rows * heads * parts * (dim + 2) : 0);
    float *const parts_data = parts > 1 ? scratch.data() : nullptr;
    const V *queries_data = queries.data(), *keys_data = cache.data(),
            *values_data = keys_data + half;
    const Tile *tiles_data = tiles.data();
    const uint32_t *table_data = table.data();
    run(std::string(kernel) + suffix<V>(), dim3(tiles.size(), kv_heads, parts),
        ATTENTION_WARPS * WARP, 0, y.data(), parts_data, queries_data, query_stride, keys_data,
        values_data, tiles_data, table_data, group, kv_heads, dim, window, per_part, scale);
    if (parts > 1) {
        const float *from = scratch.data();
        run(std::string("attention_combine") + suffix<V>(), rows * heads, 32, 0, y.data(), from,
            parts, dim);
    }

    for (uint32_t row = 0; row < rows; ++row)
        for (uint32_t head = 0; head < heads; ++head) {
            const uint32_t last = positions - rows + row, kv_head = head / group;
            const uint32_t first = last + 1 > window ? last + 1 - window : 0;
            double total = 0;
            std::vector<double> sum(dim);
            for (uint32_t p = first; p <= last; ++p) {
                const V *k = &fresh[p * stride + kv_head * dim], *v = k + own;
                double score = 0;
                for (uint32_t d = 0; d < dim; ++d)
                    score += double(widen(queries[row * query_stride + head * dim + d])) *
                             widen(k[d]);
                const double weight = std::exp(score * scale);
                total += weight;
                for (uint32_t d = 0; d < dim; ++d) sum[d] += weight * widen(v[d]);
            }
            for (uint32_t d = 0; d < dim; ++d)
                CHECK(near(y[(row * heads + head) * dim + d], sum[d] / total));
        }
}

template <typename V>
void decoder_operations() {
    const uint32_t rows = 3, heads = 3, dim = 34, width = heads * dim, half = dim / 2;
    const float eps = 1e-5f;
    const auto x = random<float>(rows * width), cos = random<float>(rows * half),
               sin = random<float>(rows * half);
    const auto weight = random<V>(width), norm = random<V>(dim),
               gate_up = random<V>(rows * 2 * width);
    const float *x_data = x.data(), *cos_data = cos.data(), *sin_data = sin.data();
    const V *weight_data = weight.data(), *norm_data = norm.data(), *gate_up_data = gate_up.data();
    std::vector<V> y(rows * width);

    run(std::string("rms_norm") + suffix<V>(), rows, 64, 0, y.data(), x_data, weight_data, width,
        eps);
    for (uint32_t row = 0; row < rows; ++row) {
        double square = 0;
        for (uint32_t i = 0; i < width; ++i)
            square += double(x[row * width + i]) * x[row * width + i];
        for (uint32_t i = 0; i < width; ++i)
            CHECK(near(y[row * width + i],
                       x[row * width + i] / std::sqrt(square / width + eps) * widen(weight[i])));
    }

    const auto added = random<V>(rows * width);
    const V *added_data = added.data();
    auto summed = x;
    run(std::string("add_rms_norm") + suffix<V>(), rows, 64, 0, y.data(), summed.data(), added_data,
        weight_data, width, eps);
    for (uint32_t row = 0; row < rows; ++row) {
        double square = 0;
        const float *sum = &summed[row * width];
        for (uint32_t i = 0; i < width; ++i) {
            CHECK(sum[i] == x[row * width + i] + widen(added[row * width + i]));
            square += double(sum[i]) * sum[i];
        }
        for (uint32_t i = 0; i < width; ++i)
            CHECK(near(y[row * width + i],
                       sum[i] / std::sqrt(square / width + eps) * widen(weight[i])));
    }

    const uint32_t queries = 2;
    const auto key_norm = random<V>(dim);
    const V *key_norm_data = key_norm.data();
    for (const bool normed : {false, true}) {
        const uint64_t stride = width + dim;
        const auto before = random<V>(rows * stride);
        auto rotated = before;
        const V *const query_norm = normed ? norm_data : nullptr;
        const V *const head_norm = normed ? key_norm_data : nullptr;
        run(std::string("rotate") + suffix<V>(), rows, 64, 0, rotated.data(), stride, cos_data,
            sin_data, query_norm, head_norm, queries, eps, heads, dim);
        for (uint32_t row = 0; row < rows; ++row)
            for (uint32_t head = 0; head <= heads; ++head) {
                const V *from = &before[row * stride + head * dim],
                        *to = &rotated[row * stride + head * dim];
                if (head == heads) {
                    // Values past the heads are unchanged.
                    CHECK(!std::memcmp(from, to, dim * sizeof(V)));
                    continue;
                }
                const auto &weight = head < queries ? norm : key_norm;
                double square = 0, inverse = 1;
                for (uint32_t i = 0; i < dim; ++i)
                    square += double(widen(from[i])) * widen(from[i]);
                if (normed) inverse = 1 / std::sqrt(square / dim + eps);
                for (uint32_t i = 0; i < half; ++i) {
                    const double a = widen(from[i]) * inverse * (normed ? widen(weight[i]) : 1);
                    const double b =
                        widen(from[i + half]) * inverse * (normed ? widen(weight[i + half]) : 1);
                    const double c = cos[row * half + i], s = sin[row * half + i];
                    CHECK(near(to[i], a * c - b * s));
                    CHECK(near(to[i + half], b * c + a * s));
                }
            }
    }

    const uint64_t count = rows * width;
    run(std::string("silu_mul") + suffix<V>(), 2, 64, 0, y.data(), gate_up_data, width, count);
    for (uint32_t i = 0; i < count; ++i) {
        const double gate = widen(gate_up[i / width * 2 * width + i % width]);
        CHECK(near(y[i], gate / (1 + std::exp(-gate)) *
                             widen(gate_up[i / width * 2 * width + i % width + width])));
    }
    auto sum = x;
    run(std::string("residual_add") + suffix<V>(), 2, 64, 0, sum.data(), added_data, count);
    for (uint32_t i = 0; i < count; ++i) CHECK(sum[i] == x[i] + widen(added[i]));
    auto biased = added;
    run(std::string("bias_add") + suffix<V>(), 2, 64, 0, biased.data(), weight_data, width, count);
    for (uint32_t i = 0; i < count; ++i)
        CHECK(near(biased[i], double(widen(added[i])) + widen(weight[i % width])));
    auto biased_f32 = random<float>(count);
    const auto before = biased_f32;
    run(std::string("bias_add_to_f32") + suffix<V>(), 2, 64, 0, biased_f32.data(), weight_data,
        width, count);
    for (uint32_t i = 0; i < count; ++i)
        CHECK(biased_f32[i] == before[i] + widen(weight[i % width]));
    const std::vector<uint32_t> ids{2, 0, 2};
    const uint32_t *ids_data = ids.data();
    std::vector<float> gathered(ids.size() * width);
    run(std::string("gather_rows") + suffix<V>(), 3, 64, 0, gathered.data(), added_data, ids_data,
        width);
    for (uint32_t i = 0; i < gathered.size(); ++i)
        CHECK(gathered[i] == widen(added[ids[i / width] * width + i % width]));
}

void tokens() {
    const uint32_t vocabulary = 301;
    auto logits = random<float>(4 * vocabulary);
    logits[170] = logits[44] = 2; // a tie: the first wins
    for (uint32_t i = 0; i < vocabulary; ++i) logits[vocabulary + i] = NAN; // no token
    logits[2 * vocabulary + 9] = INFINITY; // counts as -infinity
    logits[2 * vocabulary + 300] = 1.5;
    // Many ties: weights 1, 1/2 and 1/4, and some NaN.
    float *const row = &logits[3 * vocabulary];
    for (uint32_t i = 0; i < vocabulary; ++i)
        row[i] = i % 10 == 7 ? NAN : -std::log(float(1 << i % 3));
    std::vector<SamplingParams> params{
        {0, 0, 0, 1, 0, 0, 0}, {0.5, 1, 0, 1, 0, 1, 0}, {0, 0, 0, 1, 0, 2, 0}};
    const uint32_t all = ~0u;
    for (const auto &[min_p, top_p, top_k] :
         std::vector<std::tuple<float, float, uint32_t>>{{0, 1, all},
                                                         {-0.f, 0.8f, all},
                                                         {0.3f, 1, all},
                                                         {0, 1, 5},
                                                         {0, 1, 130},
                                                         {0, 0.01f, all},
                                                         {0, 0.7f, all},
                                                         {0, 0.5f, 120},
                                                         {0.6f, 0.9f, 1000},
                                                         {0, 0.99f, 95}})
        for (int i = 0; i < 12; ++i)
            params.push_back({(i + 0.3) / 12, 1, min_p, top_p, top_k, 3, 0});
    std::vector<uint32_t> got(params.size()), keys(params.size() * vocabulary);
    const float *data = logits.data();
    const SamplingParams *table = params.data();
    run("sample", params.size(), 128, 0, got.data(), keys.data(), data, table, vocabulary);
    CHECK(got[0] == 44 && got[1] == NO_TOKEN && got[2] == 300);
    for (size_t c = 3; c < params.size(); ++c) {
        const SamplingParams &method = params[c];
        std::vector<std::pair<double, uint32_t>> kept; // by descending weight, then by token
        for (uint32_t i = 0; i < vocabulary; ++i)
            if (!std::isnan(row[i]) && std::exp(row[i]) >= method.min_p)
                kept.push_back({-std::exp(double(row[i])), i});
        std::stable_sort(kept.begin(), kept.end(),
                         [](auto a, auto b) { return a.first < b.first - 1e-6; });
        if (method.top_k < kept.size()) kept.resize(method.top_k);
        double total = 0, sum = 0;
        for (const auto &[weight, token] : kept) total -= weight;
        for (size_t i = 0; i < kept.size(); ++i)
            if ((sum -= kept[i].first) >= method.top_p * total && method.top_p < 1)
                kept.resize(i + 1);
        std::sort(kept.begin(), kept.end(), [](auto a, auto b) { return a.second < b.second; });
        total = 0;
        for (const auto &[weight, token] : kept) total -= weight;
        double left = method.random * total;
        uint32_t want = NO_TOKEN;
        for (const auto &[weight, token] : kept)
            if ((left += weight) < 0 && want == NO_TOKEN) want = token;
        CHECK(got[c] == want);
    }
}

template <typename V>
void all_kernels() {
    apply_and_revert<V>();
    overlays<V>(4, true), overlays<V>(16, true), overlays<V>(32, false);
    attention<V>("attention_1x2", 37, 1, 1, 1, 16, ~0u);
    attention<V>("attention_8x2", 50, 13, 2, 3, 64, ~0u);
    attention<V>("attention_8x4", 41, 20, 4, 2, 80, 17);
    attention<V>("attention_1x4", 19, 1, 1, 1, 128, 5);
    attention<V>("attention_8x2", 600, 5, 8, 1, 6, ~0u); // several parts
    attention<V>("attention_8x2", 520, 4, 8, 1, 6, 30);  // parts outside the window
    decoder_operations<V>();
}
} // namespace

int main() {
    all_kernels<float>();
    all_kernels<__nv_bfloat16>();
    all_kernels<__half>();
    attention<__nv_bfloat16>("attention_8x8", 33, 9, 2, 4, 136, ~0u);
    attention<__nv_bfloat16>("attention_1x8", 33, 1, 1, 1, 256, ~0u);
    tokens();
    std::printf("%zu kernels, %d failures\n", emulation::kernels().size(), failures);
    return failures != 0;
}
