// Counts of the boundary benchmark: thinned binary maps at all thresholds, matched with the thinned truth.
#include "dmtl/kernel_table.h"
#include "dmtl/matching.h"
#include "dmtl/parallel.h"

namespace dmtl::DMTL_ISA {
namespace {

// The truth's pixels as bytes.
enum Label : uint8_t { kNothing = 0, kBoundary = 1, kIgnored = 2 };

struct CountsParams {
    int64_t* matched;      // [images, levels]
    int64_t* predicted;    // [images, levels]
    int64_t* actual;       // [images]
    const uint8_t* level;  // [images, h, w]: a pixel is predicted at thresholds 0 .. level - 1
    const uint8_t* label;  // [images, h, w], of Label
    int64_t images, h, w;
    int64_t levels;        // number of thresholds
    int64_t parts;         // of the thresholds of an image, each a piece of work of its own
    double reach;          // pixels
};

constexpr Field kCountsFields[] = {
    DMTL_FIELD(CountsParams, matched), DMTL_FIELD(CountsParams, predicted), DMTL_FIELD(CountsParams, actual),
    DMTL_FIELD(CountsParams, level),   DMTL_FIELD(CountsParams, label),     DMTL_FIELD(CountsParams, images),
    DMTL_FIELD(CountsParams, h),       DMTL_FIELD(CountsParams, w),         DMTL_FIELD(CountsParams, levels),
    DMTL_FIELD(CountsParams, parts),   DMTL_FIELD(CountsParams, reach),
};

constexpr int kPrediction = 0, kTruth = 1;

// Makes the matching's prediction these pixels and returns how many they are.
int64_t replace(Matching& matching, const BitImage& pixels) {
    const BitImage& before = matching.pixels(kPrediction);
    int64_t count = 0;
    // Removals first: what then comes is priced against prices that are closer to the end.
    for (const bool insert : {false, true})
        for (int64_t y = 0; y < pixels.h; ++y)
            for (int64_t i = 0; i < pixels.words; ++i) {
                const uint64_t now = pixels.row(y)[i], then = before.row(y)[i];
                if (insert) count += __builtin_popcountll(now);
                for (uint64_t left = insert ? now & ~then : then & ~now; left != 0; left &= left - 1) {
                    const int64_t pixel = y * pixels.w + i * kWordBits + __builtin_ctzll(left);
                    if (insert) {
                        matching.insert(kPrediction, pixel);
                    } else {
                        matching.remove(kPrediction, pixel);
                    }
                }
            }
    matching.settle_all();
    return count;
}

// Thresholds [first, last) of an image, from the highest, where there is least, to the lowest.
void count_part(const CountsParams& p, int64_t image, int64_t first, int64_t last) {
    const uint8_t* level = p.level + image * p.h * p.w;
    const uint8_t* label = p.label + image * p.h * p.w;
    const BitImage pixels(p.h, p.w), scratch(p.h, p.w), ignored(p.h, p.w);
    Matching matching(p.h, p.w, p.reach);
    pixels.fill(label, [](uint8_t value) { return value == kBoundary; });
    thin(pixels, scratch);
    int64_t actual = 0;
    Matching::each_pixel(pixels, [&](int64_t pixel) { matching.insert(kTruth, pixel), ++actual; });
    if (first == 0) p.actual[image] = actual;  // one part writes it
    ignored.fill(label, [](uint8_t value) { return value == kIgnored; });

    bool occurs[256] = {};
    for (int64_t i = 0; i < p.h * p.w; ++i) occurs[level[i]] = true;
    for (int64_t t = last - 1; t >= first; --t) {
        const int64_t at = image * p.levels + t;
        if (t < last - 1 && !occurs[t + 1]) {  // the map of the threshold above
            p.matched[at] = p.matched[at + 1], p.predicted[at] = p.predicted[at + 1];
            continue;
        }
        pixels.fill(level, [t](uint8_t value) { return value > t; });
        thin(pixels, scratch);
        for (int64_t y = 0; y < p.h; ++y)
            for (int64_t i = 0; i < pixels.words; ++i) pixels.row(y)[i] &= ~ignored.row(y)[i];
        p.predicted[at] = replace(matching, pixels);
        p.matched[at] = matching.pairs();
    }
}

void boundary_counts(const CountsParams& p, DType, int threads) {
    parallel_for(p.images * p.parts, threads, [&](int64_t item) {
        const int64_t part = item % p.parts;
        count_part(p, item / p.parts, part * p.levels / p.parts, (part + 1) * p.levels / p.parts);
    });
}

struct MatchParams {
    int64_t* result;         // pairs, cost in hundredths of a pixel
    const uint8_t* mask[2];  // [h, w], 0 or not
    int64_t h, w;
    double reach;
};

constexpr Field kMatchFields[] = {
    DMTL_FIELD(MatchParams, result), DMTL_FIELD(MatchParams, mask),  DMTL_FIELD(MatchParams, h),
    DMTL_FIELD(MatchParams, w),      DMTL_FIELD(MatchParams, reach),
};

void match_pixels(const MatchParams& p, DType, int) {
    Matching matching(p.h, p.w, p.reach);
    for (int side : {0, 1})
        for (int64_t pixel = 0; pixel < p.h * p.w; ++pixel)
            if (p.mask[side][pixel] != 0) matching.insert(side, pixel);
    matching.settle_all();
    p.result[0] = matching.pairs(), p.result[1] = matching.cost();
}

}  // namespace

DMTL_KERNELS(boundary, cpu_kernel<CountsParams, &boundary_counts>("boundary_counts", kCountsFields),
             cpu_kernel<MatchParams, &match_pixels>("match_pixels", kMatchFields))

}  // namespace dmtl::DMTL_ISA
