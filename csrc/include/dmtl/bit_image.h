// Binary images with one bit per pixel, and thinning of 64 pixels at a time.
#pragma once

#include "dmtl/scalar.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace dmtl {
namespace {

// An array of plain elements that are initially zero. (Functions of std::vector would be shared by all instruction sets.)
template <class T>
class Array {
public:
    explicit Array(int64_t count) : data_(static_cast<T*>(std::calloc(static_cast<size_t>(count > 0 ? count : 1), sizeof(T)))) {
        if (data_ == nullptr) throw std::bad_alloc();
    }
    ~Array() { std::free(data_); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    DMTL_INLINE T& operator[](int64_t i) const { return data_[i]; }
    T* data() const { return data_; }

private:
    T* data_;
};

constexpr int64_t kWordBits = 64;

// Pixel x of row y is bit x % 64 of word x / 64. The image is surrounded by one row and one word of zeros.
class BitImage {
public:
    const int64_t h, w, words;
    BitImage(int64_t height, int64_t width)
        : h(height), w(width), words((width + kWordBits - 1) / kWordBits), stride_(words + 2), data_((height + 2) * stride_) {}

    DMTL_INLINE uint64_t* row(int64_t y) const { return data_.data() + (y + 1) * stride_ + 1; }  // y: -1 .. h
    DMTL_INLINE bool get(int64_t y, int64_t x) const { return (row(y)[x / kWordBits] >> (x % kWordBits)) & 1; }
    DMTL_INLINE void set(int64_t y, int64_t x) const { row(y)[x / kWordBits] |= uint64_t{1} << (x % kWordBits); }
    DMTL_INLINE void clear(int64_t y, int64_t x) const { row(y)[x / kWordBits] &= ~(uint64_t{1} << (x % kWordBits)); }

    // Sets the pixels for whose byte the test is true.
    template <class Test>
    void fill(const uint8_t* pixels, Test test) const {
        for (int64_t y = 0; y < h; ++y) {
            uint64_t* to = row(y);
            for (int64_t i = 0; i < words; ++i) {
                const int64_t first = i * kWordBits, left = w - first, count = left < kWordBits ? left : kWordBits;
                const uint8_t* from = pixels + y * w + first;
                uint64_t word = 0;
                for (int64_t k = 0; k < count; ++k) word |= static_cast<uint64_t>(test(from[k]) ? 1 : 0) << k;
                to[i] = word;
            }
        }
    }

private:
    const int64_t stride_;
    const Array<uint64_t> data_;
};

// The pixels of words [0, words) that a subiteration of Lam, Lee and Suen's thinning deletes, from the rows above, at and below
// them. x1 .. x8 are the neighbours, counter-clockwise from the right one. dmtl/metrics/morphology.py has the conditions: G1,
// the pixel connects nothing; G2, it is neither an end nor inside; G3, it is on the side that this subiteration thins.
template <bool second>
uint64_t deletable(const uint64_t* above, const uint64_t* here, const uint64_t* below, uint64_t* gone, int64_t words) {
    uint64_t any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = 0; i < words; ++i) {
        const uint64_t x1 = here[i] >> 1 | here[i + 1] << 63, x5 = here[i] << 1 | here[i - 1] >> 63;
        const uint64_t x2 = above[i] >> 1 | above[i + 1] << 63, x3 = above[i], x4 = above[i] << 1 | above[i - 1] >> 63;
        const uint64_t x8 = below[i] >> 1 | below[i + 1] << 63, x7 = below[i], x6 = below[i] << 1 | below[i - 1] >> 63;
        const uint64_t o12 = x1 | x2, o23 = x2 | x3, o34 = x3 | x4, o45 = x4 | x5, o56 = x5 | x6, o67 = x6 | x7, o78 = x7 | x8,
                       o81 = x8 | x1;
        const uint64_t b1 = ~x1 & o23, b2 = ~x3 & o45, b3 = ~x5 & o67, b4 = ~x7 & o81;
        const uint64_t once = (b1 ^ b2 ^ b3 ^ b4) & ~((b1 & b2) | (b3 & b4));
        const uint64_t two_n1 = (o12 & o34) | (o56 & o78) | ((o12 | o34) & (o56 | o78));
        const uint64_t two_n2 = (o23 & o45) | (o67 & o81) | ((o23 | o45) & (o67 | o81));
        const uint64_t inside = o12 & o34 & o56 & o78 & o23 & o45 & o67 & o81;
        const uint64_t side = second ? (o67 | ~x4) & x5 : (o23 | ~x8) & x1;
        gone[i] = here[i] & once & two_n1 & two_n2 & ~inside & ~side;
        any |= gone[i];
    }
    return any;
}

// Thins until nothing changes, like MATLAB's bwmorph(..., 'thin', Inf). `gone` is scratch memory of the same size; it must be
// zero before, and is zero afterwards.
inline void thin(const BitImage& image, const BitImage& gone) {
    const int64_t h = image.h, words = image.words;
    const Array<int64_t> changed(h + 2);  // the subiteration that last changed row y, at y + 1
    int64_t latest = 0;
    for (int64_t now = 1; latest >= now - 2; ++now) {
        // A row has nothing to delete if it and its neighbours have not changed since the last subiteration of this kind.
        for (int64_t y = 0; y < h; ++y) {
            if (changed[y] < now - 2 && changed[y + 1] < now - 2 && changed[y + 2] < now - 2) continue;
            const auto step = now % 2 == 0 ? &deletable<true> : &deletable<false>;
            // The word before the row stores whether there is something to delete.
            gone.row(y)[-1] = step(image.row(y - 1), image.row(y), image.row(y + 1), gone.row(y), words);
        }
        for (int64_t y = 0; y < h; ++y) {
            uint64_t *from = image.row(y), *less = gone.row(y);
            if (less[-1] == 0) continue;
            for (int64_t i = -1; i < words; ++i) from[i] &= ~less[i], less[i] = 0;
            latest = changed[y + 1] = now;
        }
    }
}

}  // namespace
}  // namespace dmtl
