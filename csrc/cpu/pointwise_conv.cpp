// 1x1 convolution of channels-last float32 maps, which is a matrix product over their pixels, and its two gradients. Compiled
// once per instruction set (DMTL_ISA).
#include "dmtl/kernel_table.h"
#include "dmtl/tokens.h"

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kPiece = 2048;                   // maximum pixels of a partial sum of the weight gradient
constexpr int64_t kPartialFloats = int64_t{4} << 20;  // limit of partial sums that are kept until all are there

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

// out = (or +=) the product of the gradients and the inputs of some pixels
void add_piece(const PointwiseConvWeightParams& p, Range piece, bool add, float* out, int threads) {
    float* right = Workspace::floats(Slot::maps, packed_floats(piece.size(), p.channels));
    pack_rows(p.x + piece.begin * p.channels, p.channels, piece.size(), p.channels, right, threads);
    weight_gradient(p.grad + piece.begin * p.n, p.n, {right, piece.size(), p.channels}, add, out, threads);
}

// Partial sums are added up in order. If there are enough of them, each thread computes whole ones, from its own pixels.
void weight_gradient_of(const PointwiseConvWeightParams& p, DType, int threads) {
    const int64_t pieces = pieces_of(p.pixels, 1, kPiece), size = p.n * p.channels;
    const auto piece = [&](int64_t i) { return share(p.pixels, pieces, i); };
    if (pieces == 0)
        for (int64_t i = 0; i < size; ++i) p.d_weight[i] = 0.0f;
    if (threads == 1 || pieces < 2 * threads || pieces * size > kPartialFloats) {
        for (int64_t i = 0; i < pieces; ++i) add_piece(p, piece(i), i > 0, p.d_weight, threads);
        return;
    }
    float* partial = Workspace::floats(Slot::other, pieces * size);
    parallel_for(pieces, threads, [&](int64_t i) { add_piece(p, piece(i), false, partial + i * size, 1); });
    parallel_for(p.n, size * pieces < kSerialBelow ? 1 : threads, [&](int64_t row) {
        for (int64_t i = 0; i < pieces; ++i) {
            const float* from = partial + i * size + row * p.channels;
            float* to = p.d_weight + row * p.channels;
#pragma omp simd
            for (int64_t c = 0; c < p.channels; ++c) to[c] = i > 0 ? to[c] + from[c] : from[c];
        }
    });
}

constexpr Field kFields[] = {DMTL_FIELDS(PointwiseConvParams, out, x, weight, pixels, channels, n)};
constexpr Field kDataFields[] = {DMTL_FIELDS(PointwiseConvDataParams, d_x, grad, weight, pixels, channels, n)};
constexpr Field kWeightFields[] = {DMTL_FIELDS(PointwiseConvWeightParams, d_weight, grad, x, pixels, channels, n)};

}  // namespace

DMTL_KERNELS(pointwise_conv, cpu_kernel<PointwiseConvParams, &pointwise_conv>("pointwise_conv", kFields),
             cpu_kernel<PointwiseConvDataParams, &data_gradient>("pointwise_conv_data", kDataFields),
             cpu_kernel<PointwiseConvWeightParams, &weight_gradient_of>("pointwise_conv_weight", kWeightFields))

}  // namespace dmtl::DMTL_ISA
