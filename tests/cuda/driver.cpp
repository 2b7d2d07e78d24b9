// Stand-in for libcuda, libcublas and libcurand that runs this project's kernels on the host. The
// binary of `--features cuda` and its tests then run without a GPU, slowly, through the same driver
// calls. `deploy/cuda/emulated` builds this library and puts it on the library path.
//
// Device memory is host memory. Calls are synchronous; captured work runs on each launch of its
// graph. cuBLAS is limited to the products that we use. Some of candle's kernels are linked in (see
// deploy/cuda/emulated); looking up a missing kernel fails with a message that names it.
#include "emulation.h"
#include "kernels.cu"

#include <chrono>
#include <memory>
#include <mutex>
#include <utility>

#define API extern "C" __attribute__((visibility("default")))

namespace {
enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_FOUND = 500,
    NO_CAPTURE = 900,
    INVALIDATED = 901
};
using Pointer = unsigned long long;

// Targets for handles, which must not be null.
int context, stream_handle, module_handle, pool, blas, generator;

void *at(Pointer pointer) { return reinterpret_cast<void *>(pointer); }

// Poisons unwritten and freed memory.
void poison(Pointer pointer, size_t bytes) { std::memset(at(pointer), 0xa5, bytes); }

Pointer allocate(size_t bytes) {
    void *memory = std::aligned_alloc(256, (bytes + 511) / 256 * 256);
    if (memory != nullptr) poison(reinterpret_cast<Pointer>(memory), bytes);
    return reinterpret_cast<Pointer>(memory);
}

// Captured operations in order, with the memory that they allocate.
struct Graph {
    std::vector<std::function<void()>> nodes;
    std::map<Pointer, size_t> memory;
    size_t allocated = 0; // number of allocations that the graph does not free
    bool launched = false;

    ~Graph() {
        for (const auto &[pointer, bytes] : memory) std::free(at(pointer));
    }
};

std::recursive_mutex one_at_a_time;
std::shared_ptr<Graph> capture; // null unless the stream is being captured
bool invalid;                   // whether the capture has failed

// Runs work, or captures it if the stream is being captured.
template <typename Work>
int enqueue(Work work) {
    const std::lock_guard lock(one_at_a_time);
    if (capture == nullptr) return work(), SUCCESS;
    if (invalid) return INVALIDATED;
    capture->nodes.push_back(work);
    return SUCCESS;
}

// Runs work that cannot be captured; an error during a capture.
template <typename Work>
int at_once(Work work) {
    const std::lock_guard lock(one_at_a_time);
    if (capture != nullptr) return invalid = true, NO_CAPTURE;
    work();
    return SUCCESS;
}
} // namespace

// --- libcuda

API int cuInit(unsigned) { return SUCCESS; }
API int cuDeviceGet(int *device, int ordinal) {
    return *device = ordinal, ordinal == 0 ? SUCCESS : 101;
}
API int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
API int cuDeviceGetName(char *name, int size, int) {
    std::snprintf(name, size, "emulation on the host");
    return SUCCESS;
}
API int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 16: *value = 2; break;          // MULTIPROCESSOR_COUNT
        case 75: *value = 9; break;          // COMPUTE_CAPABILITY_MAJOR
        case 97: *value = 227 << 10; break;  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        case 115: *value = 1; break;         // MEMORY_POOLS_SUPPORTED
        default: *value = 0;
    }
    return SUCCESS;
}
API int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = size_t(8) << 30, SUCCESS; }
API int cuDevicePrimaryCtxRetain(void **result, int) { return *result = &context, SUCCESS; }
API int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API int cuCtxSetCurrent(void *) { return SUCCESS; }
API int cuCtxGetCurrent(void **result) { return *result = &context, SUCCESS; }
API int cuCtxSynchronize() { return SUCCESS; }
API int cuDeviceGetDefaultMemPool(void **result, int) { return *result = &pool, SUCCESS; }
API int cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }
API int cuStreamCreate(void **result, unsigned) { return *result = &stream_handle, SUCCESS; }
API int cuStreamDestroy_v2(void *) { return SUCCESS; }
API int cuStreamSynchronize(void *) { return at_once([] {}); }
API int cuStreamIsCapturing(void *, int *status) { return *status = capture != nullptr, SUCCESS; }
API int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }

API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    return *free_bytes = size_t(4) << 30, *total = size_t(8) << 30, SUCCESS;
}
API int cuMemAllocAsync(Pointer *result, size_t bytes, void *) {
    const std::lock_guard lock(one_at_a_time);
    if (capture != nullptr && invalid) return INVALIDATED;
    *result = allocate(bytes);
    if (*result == 0) return OUT_OF_MEMORY;
    if (capture != nullptr) {
        capture->memory[*result] = bytes, ++capture->allocated;
        capture->nodes.push_back([pointer = *result, bytes] { poison(pointer, bytes); });
    }
    return SUCCESS;
}
API int cuMemAlloc_v2(Pointer *result, size_t bytes) {
    return cuMemAllocAsync(result, bytes, nullptr);
}
API int cuMemFreeAsync(Pointer pointer, void *) {
    const std::lock_guard lock(one_at_a_time);
    if (capture == nullptr) return std::free(at(pointer)), SUCCESS;
    if (invalid) return INVALIDATED;
    const auto allocation = capture->memory.find(pointer);
    if (allocation == capture->memory.end()) return invalid = true, INVALID_VALUE;
    --capture->allocated;
    capture->nodes.push_back([pointer, bytes = allocation->second] { poison(pointer, bytes); });
    return SUCCESS;
}
API int cuMemFree_v2(Pointer pointer) { return cuMemFreeAsync(pointer, nullptr); }
API int cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t bytes, void *) {
    return at_once([=] { std::memcpy(at(to), from, bytes); });
}
API int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, void *) {
    return at_once([=] { std::memcpy(to, at(from), bytes); });
}
API int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void *) {
    return enqueue([=] { std::memmove(at(to), at(from), bytes); });
}
API int cuMemsetD8Async(Pointer to, unsigned char value, size_t bytes, void *) {
    return enqueue([=] { std::memset(at(to), value, bytes); });
}

API int cuStreamBeginCapture_v2(void *, int) {
    const std::lock_guard lock(one_at_a_time);
    if (capture != nullptr) return INVALID_VALUE;
    capture = std::make_shared<Graph>(), invalid = false;
    return SUCCESS;
}
API int cuStreamEndCapture(void *, void **graph) {
    const std::lock_guard lock(one_at_a_time);
    *graph = nullptr;
    if (capture == nullptr) return INVALID_VALUE;
    const auto captured = std::exchange(capture, nullptr);
    if (invalid) return INVALIDATED;
    return *graph = new std::shared_ptr<Graph>(captured), SUCCESS;
}
API int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    return *executable = new std::shared_ptr<Graph>(*static_cast<std::shared_ptr<Graph> *>(graph)),
           SUCCESS;
}
API int cuGraphDestroy(void *graph) {
    return delete static_cast<std::shared_ptr<Graph> *>(graph), SUCCESS;
}
API int cuGraphExecDestroy(void *executable) { return cuGraphDestroy(executable); }
API int cuGraphLaunch(void *executable, void *) {
    const std::lock_guard lock(one_at_a_time);
    Graph &graph = **static_cast<std::shared_ptr<Graph> *>(executable);
    // As on a GPU, a launch fails while the allocations of an earlier one are live.
    if (capture != nullptr || (graph.launched && graph.allocated > 0)) return INVALID_VALUE;
    graph.launched = true;
    for (const auto &node : graph.nodes) node();
    return SUCCESS;
}

API int cuEventCreate(void **event, unsigned) { return *event = new double(0), SUCCESS; }
API int cuEventDestroy_v2(void *event) { return delete static_cast<double *>(event), SUCCESS; }
API int cuEventRecord(void *event, void *) {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    *static_cast<double *>(event) = std::chrono::duration<double, std::milli>(now).count();
    return SUCCESS;
}
API int cuEventSynchronize(void *) { return SUCCESS; }
API int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    *milliseconds = float(*static_cast<double *>(end) - *static_cast<double *>(start));
    return SUCCESS;
}

API int cuModuleLoadData(void **module, const void *) { return *module = &module_handle, SUCCESS; }
API int cuModuleUnload(void *) { return SUCCESS; }
API int cuModuleGetFunction(void **function, void *, const char *name) {
    const auto kernel = emulation::kernels().find(name);
    if (kernel == emulation::kernels().end()) {
        std::fprintf(stderr, "emulation: no kernel named %s\n", name);
        return NOT_FOUND;
    }
    *function = &kernel->second;
    return SUCCESS;
}
API int cuFuncGetAttribute(int *value, int, void *) { return *value = 0, SUCCESS; }
API int cuFuncSetAttribute(void *, int, int) { return SUCCESS; }
API int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                       unsigned by, unsigned bz, unsigned shared, void *, void **arguments,
                       void **) {
    // Limits of a GPU.
    const bool grid = gx > 0 && gy > 0 && gz > 0 && gy <= 65535 && gz <= 65535;
    const bool block = bx > 0 && by > 0 && bz > 0 && bx * by * bz <= 1024;
    if (!grid || !block || shared > 227 << 10) return INVALID_VALUE;
    return enqueue((*static_cast<emulation::Kernel *>(function))({gx, gy, gz}, {bx, by, bz}, shared,
                                                                 arguments));
}
API int cuGetErrorName(int, const char **text) {
    return *text = "error in the CUDA emulation", SUCCESS;
}
API int cuGetErrorString(int, const char **text) { return cuGetErrorName(0, text); }

// --- libcublas

API int cublasCreate_v2(void **handle) { return *handle = &blas, SUCCESS; }
API int cublasDestroy_v2(void *) { return SUCCESS; }
API int cublasSetStream_v2(void *, void *) { return SUCCESS; }

namespace {
enum { R_32F = 0, R_16F = 2, R_16BF = 14, TRANSPOSED = 1, COMPUTE_32F = 68 };

float element(const void *matrix, int type, size_t i) {
    switch (type) {
        case R_32F: return static_cast<const float *>(matrix)[i];
        case R_16F: return widen(static_cast<const __half *>(matrix)[i]);
        default: return widen(static_cast<const __nv_bfloat16 *>(matrix)[i]);
    }
}

void set(void *matrix, int type, size_t i, float value) {
    switch (type) {
        case R_32F: return store(static_cast<float *>(matrix) + i, value);
        case R_16F: return store(static_cast<__half *>(matrix) + i, value);
        default: return store(static_cast<__nv_bfloat16 *>(matrix) + i, value);
    }
}

// A column-major matrix, widened to floats in row-major order: `[columns, rows]`, or its transpose.
std::vector<float> widened(const void *matrix, int type, int rows, int columns, int stride,
                           bool transposed) {
    std::vector<float> result(size_t(rows) * columns);
    for (int c = 0; c < columns; ++c)
        for (int r = 0; r < rows; ++r)
            result[size_t(c) * rows + r] =
                element(matrix, type, transposed ? size_t(r) * stride + c : size_t(c) * stride + r);
    return result;
}
} // namespace

// C = alpha op(A) op(B) + beta C, all column-major, with sums in float.
API int cublasGemmEx(void *, int trans_a, int trans_b, int m, int n, int k, const void *alpha,
                     const void *a, int a_type, int lda, const void *b, int b_type, int ldb,
                     const void *beta, void *c, int c_type, int ldc, int compute, int) {
    const auto known = [](int type) { return type == R_32F || type == R_16F || type == R_16BF; };
    if (compute != COMPUTE_32F || !known(a_type) || b_type != a_type || !known(c_type)) return 15;
    const float by = *static_cast<const float *>(alpha), keep = *static_cast<const float *>(beta);
    return enqueue([=] {
        // [m, k] and [n, k] in row-major order, so that the inner loop reads both contiguously.
        const auto left = widened(a, a_type, k, m, lda, !(trans_a == TRANSPOSED));
        const auto right = widened(b, b_type, k, n, ldb, trans_b == TRANSPOSED);
        for (int j = 0; j < n; ++j)
            for (int i = 0; i < m; ++i) {
                const float *x = &left[size_t(i) * k], *y = &right[size_t(j) * k];
                float sums[8] = {};
                int p = 0;
                for (; p + 8 <= k; p += 8)
                    for (int l = 0; l < 8; ++l) sums[l] += x[p + l] * y[p + l];
                float sum = 0;
                for (; p < k; ++p) sum += x[p] * y[p];
                for (float part : sums) sum += part;
                const size_t to = size_t(j) * ldc + i;
                set(c, c_type, to, by * sum + (keep == 0 ? 0 : keep * element(c, c_type, to)));
            }
    });
}

API int cublasGemmStridedBatchedEx(void *handle, int trans_a, int trans_b, int m, int n, int k,
                                   const void *alpha, const void *a, int a_type, int lda,
                                   long long stride_a, const void *b, int b_type, int ldb,
                                   long long stride_b, const void *beta, void *c, int c_type,
                                   int ldc, long long stride_c, int batch, int compute,
                                   int algorithm) {
    const auto at = [](const void *matrix, int type, long long values) {
        return static_cast<const char *>(matrix) + values * (type == R_32F ? 4 : 2);
    };
    for (int i = 0; i < batch; ++i) {
        void *to = const_cast<char *>(at(c, c_type, i * stride_c));
        const int status = cublasGemmEx(
            handle, trans_a, trans_b, m, n, k, alpha, at(a, a_type, i * stride_a), a_type, lda,
            at(b, b_type, i * stride_b), b_type, ldb, beta, to, c_type, ldc, compute, algorithm);
        if (status != SUCCESS) return status;
    }
    return SUCCESS;
}

// --- libcurand: candle creates a generator per device

API int curandCreateGenerator(void **result, int) { return *result = &generator, SUCCESS; }
API int curandDestroyGenerator(void *) { return SUCCESS; }
API int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return SUCCESS; }
API int curandSetStream(void *, void *) { return SUCCESS; }
