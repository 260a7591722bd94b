// out = x + proj(attention(LayerNorm(x) q^T, LayerNorm(y) kv^T)) and its backward pass. LayerNorm is computed while the
// projections read their left sides. Rows are processed in pieces whose intermediate results stay in the cache.
#include "dmtl/attention.h"
#include "dmtl/kernel_table.h"

namespace dmtl::DMTL_ISA {
namespace {

constexpr int64_t kPiece = 2048;  // maximum tokens of a piece

struct CrossAttentionParams {
    void* out;
    void *q, *kv, *a;  // results for the backward pass, or null; q is also null if `query` is given
    float* lse;        // a result for the backward pass, or null
    const void *x, *y, *query, *norm_x_weight, *norm_x_bias, *norm_y_weight, *norm_y_bias;
    const void *q_weight, *kv_weight, *proj_weight, *proj_bias;
    int64_t rows, n, m, width, heads;
    float eps;
};

// If q_weight is null, the query was given: d_q is computed, and d_x, d_norm_x_* and d_q_weight are not.
struct CrossAttentionBackwardParams {
    void *d_x, *d_y, *d_norm_x_weight, *d_norm_x_bias, *d_norm_y_weight, *d_norm_y_bias;
    void *d_q_weight, *d_kv_weight, *d_proj_weight, *d_proj_bias, *d_q;
    const void *grad, *x, *y, *norm_x_weight, *norm_x_bias, *norm_y_weight, *norm_y_bias;
    const void *q_weight, *kv_weight, *proj_weight, *q, *kv, *a;
    const float* lse;
    int64_t rows, n, m, width, heads;
    float eps;
};

template <class T>
int64_t bytes(int64_t count) {
    return count * static_cast<int64_t>(sizeof(T));
}

template <class T>
const T* at(const void* base, int64_t element) {
    return base == nullptr ? nullptr : static_cast<const T*>(base) + element;
}

template <class T>
T* at(void* base, int64_t element) {
    return base == nullptr ? nullptr : static_cast<T*>(base) + element;
}

// out = LayerNorm(x) weight^T for packed weights [width, columns].
template <class T>
void project(const T* x, const void* norm_weight, const void* norm_bias, float eps, int64_t rows,
             const PanelsOf<factors_of<T>>& weight, Moments* moments, T* out, int threads) {
    row_moments(x, rows, weight.k, eps, moments, threads);
    const Normed<T> normed{x, weight.k, moments, static_cast<const T*>(norm_weight), static_cast<const T*>(norm_bias)};
    gemm(rows, weight, threads, normed, Store<T>{out, weight.n});
}

template <class T>
void cross_attention(const CrossAttentionParams& p, int threads) {
    constexpr Factors factors = factors_of<T>;
    const int64_t width = p.width, square = packed_floats<factors>(width, width);
    const int64_t double_square = packed_floats<factors>(width, 2 * width);
    float* q_weight = Workspace::floats(Slot::weights, 2 * square + double_square);
    float *kv_weight = q_weight + square, *proj_weight = kv_weight + double_square;
    if (p.query == nullptr) pack_columns<factors>(static_cast<const T*>(p.q_weight), width, width, width, q_weight, threads);
    pack_columns<factors>(static_cast<const T*>(p.kv_weight), width, width, 2 * width, kv_weight, threads);
    pack_columns<factors>(static_cast<const T*>(p.proj_weight), width, width, width, proj_weight, threads);
    const int64_t longest = p.n > p.m ? p.n : p.m, pieces = pieces_of(p.rows, longest, kPiece), most = p.rows / pieces + 1;
    Moments* moments = static_cast<Moments*>(
        Workspace::get(Slot::other, bytes<Moments>(most * longest) + bytes<T>(most * (2 * p.n + 2 * p.m) * width)));
    T* own_q = reinterpret_cast<T*>(moments + most * longest);
    T *own_a = own_q + most * p.n * width, *own_kv = own_a + most * p.n * width;
    expect_writes(p.out, bytes<T>(p.rows * p.n * width));
    const T* proj_bias = static_cast<const T*>(p.proj_bias);
    for (int64_t i = 0; i < pieces; ++i) {
        const Range piece = share(p.rows, pieces, i);
        const int64_t rows = piece.size(), asks = piece.begin * p.n, answers = piece.begin * p.m;
        const T *x = at<T>(p.x, asks * width), *q = at<T>(p.query, asks * width);
        T* kv = p.kv == nullptr ? own_kv : at<T>(p.kv, answers * 2 * width);
        T* a = p.a == nullptr ? own_a : at<T>(p.a, asks * width);
        if (q == nullptr) {
            T* made = p.q == nullptr ? own_q : at<T>(p.q, asks * width);
            project(x, p.norm_x_weight, p.norm_x_bias, p.eps, rows * p.n, {q_weight, width, width}, moments, made, threads);
            q = made;
        }
        project(at<T>(p.y, answers * width), p.norm_y_weight, p.norm_y_bias, p.eps, rows * p.m, {kv_weight, width, 2 * width},
                moments, kv, threads);
        const Attention<T> core{q, kv, p.n, p.m, p.heads, width / p.heads};
        attention(core, rows, a, at<float>(p.lse, asks * p.heads), threads);
        T* out = at<T>(p.out, asks * width);
        gemm(rows * p.n, PanelsOf<factors>{proj_weight, width, width}, threads, RowsOf<T>{a, width},
             [=](int64_t row, int64_t column, const float* v, int64_t count) {
                 const int64_t to = row * width + column;
#pragma omp simd
                 for (int64_t j = 0; j < count; ++j) store(out + to + j, v[j] + load(proj_bias + column + j) + load(x + to + j));
             });
    }
}

template <class T>
using ParameterGradients = Gradients<T, 8>;
enum : int { kNormX, kNormXBias, kNormY, kNormYBias, kQ, kKv, kProj, kProjBias };

struct BackwardBuffers {
    float *q_weight, *kv_weight, *proj_weight;  // packed
    float *d_a, *d_q, *d_kv, *d_n;              // [tokens, width], d_kv twice as wide
    float *right, *partial, *sums;
    Moments* moments;
};

inline BackwardBuffers buffers_for(int64_t asks, int64_t answers, int64_t width) {
    const int64_t longest = asks > answers ? asks : answers, square = packed_floats(width, width);
    const int64_t double_square = packed_floats(2 * width, width);
    BackwardBuffers b;
    b.q_weight = Workspace::floats(Slot::weights, 2 * square + double_square + 5 * width * width + 5 * width);
    b.kv_weight = b.q_weight + square;
    b.proj_weight = b.kv_weight + double_square;
    b.sums = b.proj_weight + square;
    const int64_t right = packed_floats(longest, width), partial = partial_sums(longest) * 2 * width;
    b.d_a = Workspace::floats(Slot::other, (2 * asks + 2 * answers + longest) * width + right + partial + 2 * longest);
    b.d_q = b.d_a + asks * width;
    b.d_kv = b.d_q + asks * width;
    b.d_n = b.d_kv + 2 * answers * width;
    b.right = b.d_n + longest * width;
    b.partial = b.right + right;
    b.moments = reinterpret_cast<Moments*>(b.partial + partial);
    return b;
}

// The gradients of out = LayerNorm(x) weight^T, from d_out [rows, columns]: those of x (+ residual), of the norm's parameters
// and of the weight.
template <class T>
void project_backward(const float* d_out, const T* x, const void* norm_weight, const void* norm_bias, float eps, int64_t rows,
                      const Panels& weight, const T* residual, T* d_x, bool add, float* d_norm_weight, float* d_norm_bias,
                      float* d_weight, const BackwardBuffers& b, int threads) {
    const int64_t width = weight.n, columns = weight.k;
    const T* scale = static_cast<const T*>(norm_weight);
    row_moments(x, rows, width, eps, b.moments, threads);
    gemm(rows, weight, threads, RowsOf<float>{d_out, columns}, Store<float>{b.d_n, width});
    const Normed<T> normed{x, width, b.moments, scale, static_cast<const T*>(norm_bias)};
    pack_panels(rows, width, b.right, threads, [=](int64_t r, int64_t c) { return normed.at(r, c); });
    weight_gradient(d_out, columns, {b.right, rows, width}, add, d_weight, threads);
    norm_backward(b.d_n, x, b.moments, scale, residual, rows, width, d_x, add, d_norm_weight, d_norm_bias, b.partial, threads);
}

template <class T>
void piece_backward(const CrossAttentionBackwardParams& p, Range piece, const BackwardBuffers& b, const ParameterGradients<T>& to,
                    int threads) {
    const bool add = piece.begin > 0;
    const int64_t width = p.width, rows = piece.size(), asks = piece.begin * p.n, answers = piece.begin * p.m;
    const T *grad = at<T>(p.grad, asks * width), *a = at<T>(p.a, asks * width);
    gemm(rows * p.n, {b.proj_weight, width, width}, threads, RowsOf<T>{grad, width}, Store<float>{b.d_a, width});
    pack_rows(a, width, rows * p.n, width, b.right, threads);
    weight_gradient(grad, width, {b.right, rows * p.n, width}, add, to.sum[kProj], threads);
    sum_rows(grad, rows * p.n, width, add, to.sum[kProjBias], b.partial, threads);
    const Attention<T> core{at<T>(p.q, asks * width), at<T>(p.kv, answers * 2 * width), p.n, p.m, p.heads, width / p.heads};
    attention_backward(core, rows, b.d_a, a, p.lse + asks * p.heads, b.d_q, b.d_kv, threads);
    project_backward<T>(b.d_kv, at<T>(p.y, answers * width), p.norm_y_weight, p.norm_y_bias, p.eps, rows * p.m,
                        {b.kv_weight, 2 * width, width}, nullptr, at<T>(p.d_y, answers * width), add, to.sum[kNormY],
                        to.sum[kNormYBias], to.sum[kKv], b, threads);
    if (p.q_weight == nullptr)
        round_to(at<T>(p.d_q, asks * width), b.d_q, rows * p.n * width);
    else
        project_backward<T>(b.d_q, at<T>(p.x, asks * width), p.norm_x_weight, p.norm_x_bias, p.eps, rows * p.n,
                            {b.q_weight, width, width}, grad, at<T>(p.d_x, asks * width), add, to.sum[kNormX],
                            to.sum[kNormXBias], to.sum[kQ], b, threads);
}

template <class T>
void cross_attention_backward(const CrossAttentionBackwardParams& p, int threads) {
    const int64_t width = p.width, longest = p.n > p.m ? p.n : p.m;
    const int64_t pieces = pieces_of(p.rows, longest, kPiece), most = p.rows / pieces + 1;
    const BackwardBuffers b = buffers_for(most * p.n, most * p.m, width);
    const ParameterGradients<T> to({p.d_norm_x_weight, p.d_norm_x_bias, p.d_norm_y_weight, p.d_norm_y_bias, p.d_q_weight,
                                    p.d_kv_weight, p.d_proj_weight, p.d_proj_bias},
                                   {width, width, width, width, width * width, 2 * width * width, width * width, width}, b.sums);
    if (p.q_weight != nullptr) pack_rows(static_cast<const T*>(p.q_weight), width, width, width, b.q_weight, threads);
    pack_rows(static_cast<const T*>(p.kv_weight), width, 2 * width, width, b.kv_weight, threads);
    pack_rows(static_cast<const T*>(p.proj_weight), width, width, width, b.proj_weight, threads);
    for (int64_t i = 0; i < pieces; ++i) piece_backward<T>(p, share(p.rows, pieces, i), b, to, threads);
    to.round();
}

using Forward = CrossAttentionParams;
DMTL_STORAGE_KERNEL(forward, Forward, cross_attention)
constexpr Field kForward[] = {
    DMTL_FIELDS(Forward, out, q, kv, a, lse, x, y, query, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias),
    DMTL_FIELDS(Forward, q_weight, kv_weight, proj_weight, proj_bias, rows, n, m, width, heads, eps),
};

using Backward = CrossAttentionBackwardParams;
DMTL_STORAGE_KERNEL(backward, Backward, cross_attention_backward)
constexpr Field kBackward[] = {
    DMTL_FIELDS(Backward, d_x, d_y, d_norm_x_weight, d_norm_x_bias, d_norm_y_weight, d_norm_y_bias, d_q_weight, d_kv_weight),
    DMTL_FIELDS(Backward, d_proj_weight, d_proj_bias, d_q, grad, x, y, norm_x_weight, norm_x_bias, norm_y_weight, norm_y_bias),
    DMTL_FIELDS(Backward, q_weight, kv_weight, proj_weight, q, kv, a, lse),
    DMTL_FIELDS(Backward, rows, n, m, width, heads, eps),
};

}  // namespace

DMTL_KERNELS(cross_attention, cpu_kernel<Forward, &forward>("cross_attention", kForward),
             cpu_kernel<Backward, &backward>("cross_attention_backward", kBackward))

}  // namespace dmtl::DMTL_ISA
