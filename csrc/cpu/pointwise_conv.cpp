// 1x1 convolution of channels-last float32 maps, which is a matrix product over their pixels, and its two gradients. Compiled
// once per instruction set (DMTL_ISA).
#include "dmtl/kernel_table.h"
#include "dmtl/tokens.h"

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kPiece = 2048;  // maximum pixels of a partial sum of the weight gradient

// x [pixels, channels], weight [n, channels], out [pixels, n]
struct PointwiseConvParams {
    float* out;
    const float *x, *weight;
    int64_t pixels, channels, n;
};

// d_x [pixels, channels] for grad [pixels, n]
struct PointwiseConvDataParams {
    float* d_x;
    const float *grad, *weight;
    int64_t pixels, channels, n;
};

struct PointwiseConvWeightParams {
    float* d_weight;
    const float *grad, *x;
    int64_t pixels, channels, n;
};

// out [pixels, b.n] = a [pixels, b.k] times packed panels
void multiply(const float* a, int64_t pixels, const Panels& b, float* out, int threads) {
    expect_writes(out, pixels * b.n * static_cast<int64_t>(sizeof(float)), threads);
    gemm(pixels, b, threads, RowsOf<float>{a, b.k}, Store<float>{out, b.n});
}

void pointwise_conv(const PointwiseConvParams& p, DType, int threads) {
    float* packed = Workspace::floats(Slot::weights, packed_floats(p.channels, p.n));
    pack_columns(p.weight, p.channels, p.channels, p.n, packed, threads);
    multiply(p.x, p.pixels, {packed, p.channels, p.n}, p.out, threads);
}

void data_gradient(const PointwiseConvDataParams& p, DType, int threads) {
    float* packed = Workspace::floats(Slot::weights, packed_floats(p.n, p.channels));
    pack_rows(p.weight, p.channels, p.n, p.channels, packed, threads);
    multiply(p.grad, p.pixels, {packed, p.n, p.channels}, p.d_x, threads);
}

void weight_gradient_of(const PointwiseConvWeightParams& p, DType, int threads) {
    if (p.pixels == 0)
        for (int64_t i = 0; i < p.n * p.channels; ++i) p.d_weight[i] = 0.0f;
    const int64_t pieces = pieces_of(p.pixels, 1, kPiece);
    for (int64_t i = 0; i < pieces; ++i) {
        const Range piece = share(p.pixels, pieces, i);
        float* right = Workspace::floats(Slot::maps, packed_floats(piece.size(), p.channels));
        pack_rows(p.x + piece.begin * p.channels, p.channels, piece.size(), p.channels, right, threads);
        weight_gradient(p.grad + piece.begin * p.n, p.n, {right, piece.size(), p.channels}, i > 0, p.d_weight, threads);
    }
}

constexpr Field kFields[] = {DMTL_FIELDS(PointwiseConvParams, out, x, weight, pixels, channels, n)};
constexpr Field kDataFields[] = {DMTL_FIELDS(PointwiseConvDataParams, d_x, grad, weight, pixels, channels, n)};
constexpr Field kWeightFields[] = {DMTL_FIELDS(PointwiseConvWeightParams, d_weight, grad, x, pixels, channels, n)};

}  // namespace

DMTL_KERNELS(pointwise_conv, cpu_kernel<PointwiseConvParams, &pointwise_conv>("pointwise_conv", kFields),
             cpu_kernel<PointwiseConvDataParams, &data_gradient>("pointwise_conv_data", kDataFields),
             cpu_kernel<PointwiseConvWeightParams, &weight_gradient_of>("pointwise_conv_weight", kWeightFields))

}  // namespace dmtl::DMTL_ISA
