// Thins binary images (`dmtl.metrics.morphology.thin`).
#include "dmtl/bit_image.h"
#include "dmtl/kernel_table.h"
#include "dmtl/parallel.h"

namespace dmtl::DMTL_ISA {
namespace {

struct ThinParams {
    uint8_t* out;         // [count, h, w], 0 or 1
    const uint8_t* mask;  // [count, h, w], zero or nonzero
    int64_t count, h, w;
};

constexpr Field kThinFields[] = {
    DMTL_FIELD(ThinParams, out), DMTL_FIELD(ThinParams, mask), DMTL_FIELD(ThinParams, count),
    DMTL_FIELD(ThinParams, h),   DMTL_FIELD(ThinParams, w),
};

void thin_images(const ThinParams& p, DType, int threads) {
    parallel_for(p.count, threads, [&](int64_t number) {
        const BitImage image(p.h, p.w), gone(p.h, p.w);
        image.fill(p.mask + number * p.h * p.w, [](uint8_t pixel) { return pixel != 0; });
        thin(image, gone);
        uint8_t* out = p.out + number * p.h * p.w;
        for (int64_t y = 0; y < p.h; ++y)
            for (int64_t x = 0; x < p.w; ++x) *out++ = image.get(y, x) ? 1 : 0;
    });
}

}  // namespace

DMTL_KERNELS(morphology, cpu_kernel<ThinParams, &thin_images>("thin", kThinFields))

}  // namespace dmtl::DMTL_ISA
