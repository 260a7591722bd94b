// The counts of the boundary benchmark: binary maps at all thresholds are thinned and matched with the thinned ground truth.
#include "dmtl/kernel_table.h"
#include "dmtl/matching.h"
#include "dmtl/parallel.h"

namespace dmtl::DMTL_ISA {
namespace {

// Values of the ground truth.
enum Label : uint8_t { kNothing = 0, kBoundary = 1, kUnknown = 2 };

struct CountsParams {
    int64_t* matched;      // [images, levels]
    int64_t* predicted;    // [images, levels]
    int64_t* actual;       // [images]
    const uint8_t* level;  // [images, h, w]: a pixel is predicted at thresholds 0 .. level - 1
    const uint8_t* label;  // [images, h, w], of Label
    int64_t images, h, w;
    int64_t levels;        // number of thresholds, at most 255
    int64_t parts;         // number of parts into which the thresholds of an image are divided; each is one item of work
    double reach;          // pixels
};

constexpr Field kCountsFields[] = {
    DMTL_FIELDS(CountsParams, matched, predicted, actual, level, label, images, h, w, levels, parts, reach),
};

constexpr int kPrediction = 0, kTruth = 1;

int64_t count(const BitImage& image) {
    int64_t pixels = 0;
    for (int64_t y = 0; y < image.h; ++y)
        for (int64_t i = 0; i < image.words; ++i) pixels += __builtin_popcountll(image.row(y)[i]);
    return pixels;
}

// Replaces the pixels of one side of the matching; they must be settled afterwards. Pixels that are not `known` are spare.
// Removals come first, because they leave fewer neighbours to visit.
void replace(Matching& matching, int side, const BitImage& pixels, const BitImage& known) {
    const BitImage& before = matching.pixels(side);
    Matching::each_pixel(before, pixels, [&](int64_t pixel) { matching.remove(side, pixel); });
    Matching::each_pixel(pixels, before, [&](int64_t pixel) {
        matching.insert(side, pixel, /*spare=*/!known.get(pixel / known.w, pixel % known.w));
    });
}

// The first threshold of a part. The work of a threshold grows with the number of pixels that are added at it.
int64_t first_of(int64_t part, const CountsParams& p, const int64_t (&pixels_at)[256]) {
    const int64_t always = p.h * p.w / 100 + 1, all = p.h * p.w - pixels_at[0] + p.levels * always;
    int64_t t = 0;
    for (int64_t before = 0; t < p.levels && before * p.parts < part * all; ++t) before += pixels_at[t + 1] + always;
    return t;
}

// Counts a part of an image's thresholds, from the highest, which has the fewest pixels, to the lowest.
void count_part(const CountsParams& p, int64_t image, int64_t part) {
    const uint8_t* level = p.level + image * p.h * p.w;
    const uint8_t* label = p.label + image * p.h * p.w;
    const BitImage truth(p.h, p.w), pixels(p.h, p.w), scratch(p.h, p.w), known(p.h, p.w);
    truth.fill(label, [](uint8_t value) { return value == kBoundary; });
    thin(truth, scratch);
    known.fill(label, [](uint8_t value) { return value != kUnknown; });
    int64_t pixels_at[256] = {};
    for (int64_t i = 0; i < p.h * p.w; ++i) ++pixels_at[level[i]];
    const int64_t actual = count(truth);
    if (part == 0) p.actual[image] = actual;  // one part writes it
    const int64_t first = first_of(part, p, pixels_at), last = first_of(part + 1, p, pixels_at);

    Matching matching(p.h, p.w, p.reach);
    for (int64_t t = last - 1; t >= first; --t) {
        const int64_t at = image * p.levels + t;
        if (t < last - 1 && pixels_at[t + 1] == 0) {  // the map of the threshold above
            p.matched[at] = p.matched[at + 1], p.predicted[at] = p.predicted[at + 1];
            continue;
        }
        pixels.fill(level, [t](uint8_t value) { return value > t; });
        thin(pixels, scratch);
        const int64_t predicted = count(pixels);
        // At the first threshold, insert the side with more pixels first: it finds no neighbours yet, so only the smaller side
        // has to search for partners.
        const bool begin = t == last - 1, truth_first = actual > predicted;
        if (begin && truth_first) replace(matching, kTruth, truth, known);
        replace(matching, kPrediction, pixels, known);
        if (begin && !truth_first) replace(matching, kTruth, truth, known);
        matching.settle_all();
        int64_t uncounted = 0;
        Matching::each_pixel(pixels, known, [&](int64_t pixel) { uncounted += !matching.paired(kPrediction, pixel); });
        p.matched[at] = matching.pairs(), p.predicted[at] = predicted - uncounted;
    }
}

void boundary_counts(const CountsParams& p, DType, int threads) {
    parallel_for(p.images * p.parts, threads, [&](int64_t item) { count_part(p, item / p.parts, item % p.parts); });
}

}  // namespace

DMTL_KERNELS(boundary, cpu_kernel<CountsParams, &boundary_counts>("boundary_counts", kCountsFields))

}  // namespace dmtl::DMTL_ISA
