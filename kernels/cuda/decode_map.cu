// decode_map: the 1x1 head as a product over pixels into float32 logits at low resolution, then a thread for each pixel of the
// map, which interpolates class after class. Floor at one image, 21 classes: 4 MB of bf16 read, 2 MB of class ids written.
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

template <class T>
__global__ void __launch_bounds__(kThreads) convert_kernel(Params p) {
    const int64_t pixel = int64_t{blockIdx.x} * kThreads + threadIdx.x, cells = p.h * p.w;
    if (pixel >= p.rows * cells) return;
    const T* from = pixel_of<T>(p, pixel);
    for (int64_t c = 0; c < p.classes; ++c)
        p.logits[(pixel / cells * p.classes + c) * cells + pixel % cells] = load(from + c * p.stride_c);
}

// The four logits around a pixel of the map, as offsets into a class's plane.
struct Corners {
    int64_t left_top, right_top, left_bottom, right_bottom;
    float down, across;
    __device__ float value(const float* plane) const {
        return lerp(lerp(__ldg(plane + left_top), __ldg(plane + left_bottom), down),
                    lerp(__ldg(plane + right_top), __ldg(plane + right_bottom), down), across);
    }
};

__device__ Corners corners_of(const Params& p, int64_t y, int64_t x) {
    const Between rows = between(y, p.factor), columns = between(x, p.factor);
    const int64_t top = rows.first(p.h) * p.w, bottom = rows.second(p.h) * p.w;
    const int64_t left = columns.first(p.w), right = columns.second(p.w);
    return {top + left, top + right, bottom + left, bottom + right, way(rows.phase, p.factor), way(columns.phase, p.factor)};
}

template <DecodeKind kind>
__global__ void __launch_bounds__(kThreads) map_kernel(Params p) {
    const int64_t x = int64_t{blockIdx.x} * kThreads + threadIdx.x, y = blockIdx.y, plane = p.h * p.w;
    if (x >= p.width) return;
    for (int64_t row = blockIdx.z; row < p.rows; row += gridDim.z) {
        const float* logits = p.logits + row * p.classes * plane;
        const Corners corners = corners_of(p, y, x);
        const int64_t at = (row * p.height + y) * p.width + x;
        const float u = corners.value(logits);
        float* out = static_cast<float*>(p.out);
        if constexpr (kind == DecodeKind::argmax) {
            float best = u;
            int64_t index = 0;
            for (int64_t c = 1; c < p.classes; ++c) {
                const float value = corners.value(logits + c * plane);
                const bool lead = leads(value, best);
                best = lead ? value : best;
                index = lead ? c : index;
            }
            static_cast<int64_t*>(p.out)[at] = index;
        } else if constexpr (kind == DecodeKind::unit) {
            const float v = corners.value(logits + plane), w = corners.value(logits + 2 * plane);
            const float scale = unit_scale(u * u + v * v + w * w);
            out += at + 2 * row * p.height * p.width;
            out[0] = u * scale, out[p.height * p.width] = v * scale, out[2 * p.height * p.width] = w * scale;
        } else if constexpr (kind == DecodeKind::softmax) {
            out[at] = sigmoid32(corners.value(logits + plane) - u);
        } else {
            out[at] = kind == DecodeKind::sigmoid ? sigmoid32(u) : kind == DecodeKind::exp ? exp32(u) : u;
        }
    }
}

template <DecodeKind kind>
cudaError_t make_map(const Params& p, cudaStream_t stream) {
    constexpr int64_t most = 65535;
    const dim3 grid(static_cast<unsigned>((p.width + kThreads - 1) / kThreads), static_cast<unsigned>(p.height),
                    static_cast<unsigned>(p.rows < most ? p.rows : most));
    map_kernel<kind><<<grid, kThreads, 0, stream>>>(p);
    return cudaGetLastError();
}

template <class T>
cudaError_t make_logits(const Params& p, cudaStream_t stream) {
    const int64_t pixels = p.rows * p.h * p.w;
    if (p.weight != nullptr)
        return product<T>(Pixels<T>{p}, p.weight, pixels, p.classes, p.channels,
                          StoreLogits<T>{p.logits, static_cast<const T*>(p.bias), p.classes, p.h * p.w}, stream);
    convert_kernel<T><<<static_cast<unsigned>((pixels + kThreads - 1) / kThreads), kThreads, 0, stream>>>(p);
    return cudaGetLastError();
}

}  // namespace

static cudaError_t decode_map(const Params& params, DType dtype, cudaStream_t stream) {
    const cudaError_t status = with_storage(
        dtype, [&](auto* storage) { return make_logits<std::remove_pointer_t<decltype(storage)>>(params, stream); });
    if (status != cudaSuccess) return status;
    switch (static_cast<DecodeKind>(params.kind)) {
        case DecodeKind::argmax: return make_map<DecodeKind::argmax>(params, stream);
        case DecodeKind::softmax: return make_map<DecodeKind::softmax>(params, stream);
        case DecodeKind::sigmoid: return make_map<DecodeKind::sigmoid>(params, stream);
        case DecodeKind::exp: return make_map<DecodeKind::exp>(params, stream);
        case DecodeKind::unit: return make_map<DecodeKind::unit>(params, stream);
        default: return make_map<DecodeKind::value>(params, stream);
    }
}

DMTL_KERNELS(decode_map, cuda_kernel<Params, &decode_map>("decode_map", kDecodeMapFields))

}  // namespace dmtl::cuda
