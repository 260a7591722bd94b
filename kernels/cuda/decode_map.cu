// decode_map: the 1x1 head, if there is one, as a product over pixels that gives float32 logits at low resolution; then one
// thread for each pixel of the map interpolates class after class. Floor for one image with 21 classes: 4 MB of bf16 read, 2 MB
// of class ids written.
#include "dmtl/decode_map.h"
#include "dmtl/product_cuda.cuh"

namespace dmtl::cuda {
namespace {

using Params = DecodeMapParams;

constexpr int kThreads = 128;

template <class T>
DMTL_INLINE const T* pixel_of(const Params& p, int64_t r) {
    const int64_t cells = p.h * p.w, cell = r % cells;
    return static_cast<const T*>(p.x) + r / cells * p.stride_n + cell / p.w * p.stride_y + cell % p.w * p.stride_x;
}

template <class T>
struct Pixels {
    Params p;
    __device__ const T* row(int64_t r) const { return pixel_of<T>(p, r); }
    __device__ int64_t column(int64_t k) const { return k * p.stride_c; }
    __device__ float at(const T* row, int64_t column) const { return load(row + column); }
};

template <class T>
struct StoreLogits {
    float* logits;
    const T* bias;  // or null
    int64_t classes, cells;
    __device__ void operator()(int64_t r, int64_t c, float value) const {
        logits[(r / cells * classes + c) * cells + r % cells] = bias == nullptr ? value : value + load(bias + c);
    }
};

// The logits at low resolution: the result of the product, or x itself.
template <class T>
struct Logits {
    const T* first;
    int64_t stride_n, stride_c, stride_y, stride_x;
};

// The four logits around a pixel of the map, as offsets from the first logit of a class.
struct Corners {
    int64_t left_top, right_top, left_bottom, right_bottom;
    float down, across;
    template <class T>
    __device__ float value(const T* plane) const {
        return lerp(lerp(load(plane + left_top), load(plane + left_bottom), down),
                    lerp(load(plane + right_top), load(plane + right_bottom), down), across);
    }
};

template <class T>
__device__ Corners corners_of(const Params& p, const Logits<T>& from, int64_t y, int64_t x) {
    const Between rows = between(y, p.factor), columns = between(x, p.factor);
    const int64_t top = rows.first(p.h) * from.stride_y, bottom = rows.second(p.h) * from.stride_y;
    const int64_t left = columns.first(p.w) * from.stride_x, right = columns.second(p.w) * from.stride_x;
    return {top + left, top + right, bottom + left, bottom + right, way(rows.phase, p.factor), way(columns.phase, p.factor)};
}

template <DecodeKind kind, class T>
__global__ void __launch_bounds__(kThreads) map_kernel(Params p, Logits<T> from) {
    const int64_t x = int64_t{blockIdx.x} * kThreads + threadIdx.x, y = blockIdx.y;
    if (x >= p.width) return;
    for (int64_t row = blockIdx.z; row < p.rows; row += gridDim.z) {
        const T* logits = from.first + row * from.stride_n;
        const Corners corners = corners_of(p, from, y, x);
        const int64_t at = (row * p.height + y) * p.width + x;
        const float u = corners.value(logits);
        float* out = static_cast<float*>(p.out);
        if constexpr (kind == DecodeKind::argmax) {
            float best = u;
            int64_t index = 0;
            for (int64_t c = 1; c < p.classes; ++c) {
                const float value = corners.value(logits + c * from.stride_c);
                const bool lead = leads(value, best);
                best = lead ? value : best;
                index = lead ? c : index;
            }
            static_cast<int64_t*>(p.out)[at] = index;
        } else if constexpr (kind == DecodeKind::unit) {
            const float v = corners.value(logits + from.stride_c), w = corners.value(logits + 2 * from.stride_c);
            const float scale = unit_scale(u * u + v * v + w * w);
            out += at + 2 * row * p.height * p.width;
            out[0] = u * scale, out[p.height * p.width] = v * scale, out[2 * p.height * p.width] = w * scale;
        } else if constexpr (kind == DecodeKind::softmax) {
            out[at] = sigmoid32(corners.value(logits + from.stride_c) - u);
        } else {
            out[at] = kind == DecodeKind::sigmoid ? sigmoid32(u) : kind == DecodeKind::exp ? exp32(u) : u;
        }
    }
}

template <DecodeKind kind, class T>
cudaError_t make_map_of(const Params& p, const Logits<T>& from, cudaStream_t stream) {
    constexpr int64_t most = 65535;
    const dim3 grid(static_cast<unsigned>((p.width + kThreads - 1) / kThreads), static_cast<unsigned>(p.height),
                    static_cast<unsigned>(p.rows < most ? p.rows : most));
    map_kernel<kind, T><<<grid, kThreads, 0, stream>>>(p, from);
    return cudaGetLastError();
}

template <class T>
cudaError_t make_map(const Params& p, const Logits<T>& from, cudaStream_t stream) {
    switch (static_cast<DecodeKind>(p.kind)) {
        case DecodeKind::argmax: return make_map_of<DecodeKind::argmax>(p, from, stream);
        case DecodeKind::softmax: return make_map_of<DecodeKind::softmax>(p, from, stream);
        case DecodeKind::sigmoid: return make_map_of<DecodeKind::sigmoid>(p, from, stream);
        case DecodeKind::exp: return make_map_of<DecodeKind::exp>(p, from, stream);
        case DecodeKind::unit: return make_map_of<DecodeKind::unit>(p, from, stream);
        default: return make_map_of<DecodeKind::value>(p, from, stream);
    }
}

template <class T>
cudaError_t decode(const Params& p, cudaStream_t stream) {
    if (p.weight == nullptr)
        return make_map(p, Logits<T>{static_cast<const T*>(p.x), p.stride_n, p.stride_c, p.stride_y, p.stride_x}, stream);
    const int64_t cells = p.h * p.w;
    const StoreLogits<T> stored{p.logits, static_cast<const T*>(p.bias), p.classes, cells};
    const cudaError_t status = product<T>(Pixels<T>{p}, p.weight, p.rows * cells, p.classes, p.channels, stored, stream);
    if (status != cudaSuccess) return status;
    return make_map(p, Logits<float>{p.logits, p.classes * cells, cells, p.w, 1}, stream);
}

}  // namespace

static cudaError_t decode_map(const Params& params, DType dtype, cudaStream_t stream) {
    return with_storage(dtype, [&](auto* storage) { return decode<std::remove_pointer_t<decltype(storage)>>(params, stream); });
}

DMTL_KERNELS(decode_map, cuda_kernel<Params, &decode_map>("decode_map", kDecodeMapFields))

}  // namespace dmtl::cuda
