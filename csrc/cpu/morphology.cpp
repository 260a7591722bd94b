// Thins a binary image (`dmtl.metrics.morphology.thin`).
#include "dmtl/bit_image.h"
#include "dmtl/kernel_table.h"

namespace dmtl::DMTL_ISA {
namespace {

struct ThinParams {
    uint8_t* out;         // [h, w], 0 or 1
    const uint8_t* mask;  // [h, w], zero or nonzero
    int64_t h, w;
};

constexpr Field kThinFields[] = {DMTL_FIELDS(ThinParams, out, mask, h, w)};

void thin_image(const ThinParams& p, DType, int) {
    const BitImage image(p.h, p.w), gone(p.h, p.w);
    image.fill(p.mask, [](uint8_t pixel) { return pixel != 0; });
    thin(image, gone);
    uint8_t* out = p.out;
    for (int64_t y = 0; y < p.h; ++y)
        for (int64_t x = 0; x < p.w; ++x) *out++ = image.get(y, x) ? 1 : 0;
}

}  // namespace

DMTL_KERNELS(morphology, cpu_kernel<ThinParams, &thin_image>("thin", kThinFields))

}  // namespace dmtl::DMTL_ISA
