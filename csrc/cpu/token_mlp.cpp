// out = x + fc2(GELU(fc1(LayerNorm(x)))) and its backward pass. LayerNorm and GELU are computed while the products read their
// left sides, so that only h is stored. Rows are processed in pieces whose h stays in the cache.
#include "dmtl/kernel_table.h"
#include "dmtl/special.h"
#include "dmtl/tokens.h"

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kPiece = 2048;  // maximum rows of a piece

struct TokenMlpParams {
    void* out;
    void* h;  // [rows, hidden], or null if it is not needed
    const void *x, *norm_weight, *norm_bias, *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;
    int64_t rows, width, hidden;
    float eps;
};

struct TokenMlpBackwardParams {
    void *d_x, *d_norm_weight, *d_norm_bias, *d_fc1_weight, *d_fc1_bias, *d_fc2_weight, *d_fc2_bias;
    const void *grad, *x, *norm_weight, *norm_bias, *fc1_weight, *fc2_weight, *h;
    int64_t rows, width, hidden;
    float eps;
};

template <class T>
struct GeluOf {
    const T* h;
    int64_t hidden;
    void operator()(int64_t row, int64_t rows, int64_t k, int64_t count, float* out, int64_t stride) const {
        for (int64_t r = 0; r < rows; ++r) {
            const T* from = h + (row + r) * hidden + k;
#pragma omp simd
            for (int64_t c = 0; c < count; ++c) out[r * stride + c] = gelu(load(from + c));
        }
    }
};

template <class T>
void token_mlp(const TokenMlpParams& p, int threads) {
    const int64_t width = p.width, hidden = p.hidden;
    const T* x = static_cast<const T*>(p.x);
    const T* fc2_bias = static_cast<const T*>(p.fc2_bias);
    constexpr Factors factors = factors_of<T>;
    const int64_t fc1_floats = packed_floats<factors>(width, hidden), fc2_floats = packed_floats<factors>(hidden, width);
    float *packed1 = Workspace::floats(Slot::weights, fc1_floats + fc2_floats), *packed2 = packed1 + fc1_floats;
    pack_columns<factors>(static_cast<const T*>(p.fc1_weight), width, width, hidden, packed1, threads);
    pack_columns<factors>(static_cast<const T*>(p.fc2_weight), hidden, hidden, width, packed2, threads);
    const PanelsOf<factors> fc1{packed1, width, hidden}, fc2{packed2, hidden, width};
    const int64_t pieces = pieces_of(p.rows, 1, kPiece), most = p.rows / pieces + 1;
    Moments* moments = static_cast<Moments*>(
        Workspace::get(Slot::maps, most * (static_cast<int64_t>(sizeof(Moments)) + hidden * static_cast<int64_t>(sizeof(T)))));
    T* own_h = reinterpret_cast<T*>(moments + most);
    expect_writes(p.out, p.rows * width * static_cast<int64_t>(sizeof(T)));
    if (p.h != nullptr) expect_writes(p.h, p.rows * hidden * static_cast<int64_t>(sizeof(T)));
    for (int64_t i = 0; i < pieces; ++i) {
        const Range piece = share(p.rows, pieces, i);
        const T* from = x + piece.begin * width;
        T* h = p.h == nullptr ? own_h : static_cast<T*>(p.h) + piece.begin * hidden;
        T* out = static_cast<T*>(p.out) + piece.begin * width;
        row_moments(from, piece.size(), width, p.eps, moments, threads);
        const Normed<T> normed{from, width, moments, static_cast<const T*>(p.norm_weight), static_cast<const T*>(p.norm_bias)};
        gemm(piece.size(), fc1, threads, normed, StoreBiased<T>{h, hidden, static_cast<const T*>(p.fc1_bias)});
        gemm(piece.size(), fc2, threads, GeluOf<T>{h, hidden},
             [=](int64_t row, int64_t column, const float* v, int64_t count) {
                 const int64_t at = row * width + column;
#pragma omp simd
                 for (int64_t j = 0; j < count; ++j)
                     store(out + at + j, v[j] + load(fc2_bias + column + j) + load(from + at + j));
             });
    }
}

template <class T>
using ParameterGradients = Gradients<T, 6>;
enum : int { kNormWeight, kNormBias, kFc1Weight, kFc1Bias, kFc2Weight, kFc2Bias };

struct BackwardBuffers {
    float *fc1, *fc2;    // packed weights
    float *d_h, *d_n;    // [piece, hidden], [piece, width]
    float *right;        // packed right side of a weight gradient
    float *partial, *sums;
    Moments* moments;
};

inline BackwardBuffers buffers_for(int64_t most, int64_t width, int64_t hidden) {
    const int64_t packed = packed_floats(hidden, width), other = packed_floats(width, hidden);
    const int64_t wide = packed_floats(most, hidden), narrow = packed_floats(most, width);
    const int64_t right = wide > narrow ? wide : narrow;
    const int64_t partial = partial_sums(most) * (hidden > 2 * width ? hidden : 2 * width);
    float* weights = Workspace::floats(Slot::weights, packed + other);
    float* maps = Workspace::floats(Slot::maps, most * (hidden + width + 2) + right + partial);
    float* sums = Workspace::floats(Slot::other, 2 * hidden * width + hidden + 3 * width);
    float* d_n = maps + most * hidden;
    float* after = d_n + most * width;
    return {weights, weights + packed, maps, d_n, after, after + right, sums, reinterpret_cast<Moments*>(after + right + partial)};
}

template <class T>
void piece_backward(const TokenMlpBackwardParams& p, Range piece, const BackwardBuffers& b,
                    const ParameterGradients<T>& to, int threads) {
    const int64_t rows = piece.size(), width = p.width, hidden = p.hidden;
    const bool add = piece.begin > 0;
    const T* grad = static_cast<const T*>(p.grad) + piece.begin * width;
    const T* x = static_cast<const T*>(p.x) + piece.begin * width;
    const T* h = static_cast<const T*>(p.h) + piece.begin * hidden;
    const T* norm_weight = static_cast<const T*>(p.norm_weight);
    row_moments(x, rows, width, p.eps, b.moments, threads);
    gemm(rows, {b.fc2, width, hidden}, threads, RowsOf<T>{grad, width},
         [=](int64_t row, int64_t column, const float* v, int64_t count) {
             const int64_t at = row * hidden + column;
#pragma omp simd
             for (int64_t j = 0; j < count; ++j) b.d_h[at + j] = v[j] * gelu_derivative(load(h + at + j));
         });
    pack_panels(rows, hidden, b.right, threads, [=](int64_t r, int64_t c) { return gelu(load(h + r * hidden + c)); });
    weight_gradient(grad, width, {b.right, rows, hidden}, add, to.sum[kFc2Weight], threads);
    sum_rows(grad, rows, width, add, to.sum[kFc2Bias], b.partial, threads);
    const Normed<T> normed{x, width, b.moments, norm_weight, static_cast<const T*>(p.norm_bias)};
    pack_panels(rows, width, b.right, threads, [=](int64_t r, int64_t c) { return normed.at(r, c); });
    weight_gradient(b.d_h, hidden, {b.right, rows, width}, add, to.sum[kFc1Weight], threads);
    sum_rows(b.d_h, rows, hidden, add, to.sum[kFc1Bias], b.partial, threads);
    gemm(rows, {b.fc1, hidden, width}, threads, RowsOf<float>{b.d_h, hidden}, Store<float>{b.d_n, width});
    norm_backward(b.d_n, x, b.moments, norm_weight, grad, rows, width, static_cast<T*>(p.d_x) + piece.begin * width, add,
                  to.sum[kNormWeight], to.sum[kNormBias], b.partial, threads);
}

template <class T>
void token_mlp_backward(const TokenMlpBackwardParams& p, int threads) {
    const int64_t pieces = pieces_of(p.rows, 1, kPiece);
    const BackwardBuffers buffers = buffers_for(p.rows / pieces + 1, p.width, p.hidden);
    const ParameterGradients<T> to(
        {p.d_norm_weight, p.d_norm_bias, p.d_fc1_weight, p.d_fc1_bias, p.d_fc2_weight, p.d_fc2_bias},
        {p.width, p.width, p.hidden * p.width, p.hidden, p.width * p.hidden, p.width}, buffers.sums);
    pack_rows(static_cast<const T*>(p.fc1_weight), p.width, p.hidden, p.width, buffers.fc1, threads);
    pack_rows(static_cast<const T*>(p.fc2_weight), p.hidden, p.width, p.hidden, buffers.fc2, threads);
    expect_writes(p.d_x, p.rows * p.width * static_cast<int64_t>(sizeof(T)));
    for (int64_t i = 0; i < pieces; ++i) piece_backward<T>(p, share(p.rows, pieces, i), buffers, to, threads);
    to.round();
}

using Forward = TokenMlpParams;
DMTL_STORAGE_KERNEL(forward, Forward, token_mlp)
constexpr Field kForward[] = {
    DMTL_FIELDS(Forward, out, h, x, norm_weight, norm_bias, fc1_weight, fc1_bias),
    DMTL_FIELDS(Forward, fc2_weight, fc2_bias, rows, width, hidden, eps),
};

using Backward = TokenMlpBackwardParams;
DMTL_STORAGE_KERNEL(backward, Backward, token_mlp_backward)
constexpr Field kBackward[] = {
    DMTL_FIELDS(Backward, d_x, d_norm_weight, d_norm_bias, d_fc1_weight, d_fc1_bias, d_fc2_weight, d_fc2_bias, grad, x),
    DMTL_FIELDS(Backward, norm_weight, norm_bias, fc1_weight, fc2_weight, h, rows, width, hidden, eps),
};

}  // namespace

DMTL_KERNELS(token_mlp, cpu_kernel<Forward, &forward>("token_mlp", kForward),
             cpu_kernel<Backward, &backward>("token_mlp_backward", kBackward))

}  // namespace dmtl::DMTL_ISA
