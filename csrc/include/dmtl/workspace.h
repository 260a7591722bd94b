// Scratch memory that is kept between calls, so that repeated calls cause no page faults. There is one buffer for each thread
// and slot, which grows on demand and only shrinks by `shrink`. Contents are undefined. Different slots are for buffers that
// one thread uses at the same time.
#pragma once

#include "dmtl/parallel.h"

#include <cstdlib>
#include <new>

namespace dmtl {
namespace {

enum class Slot : int { a_block, maps, weights, other, count };

class Workspace {
public:
    // Returns at least `bytes` of this thread's memory, aligned to 64 bytes.
    static void* get(Slot slot, int64_t bytes) {
        return buffers()[static_cast<int>(slot)].grown(bytes);
    }
    // Frees the buffers of this thread that are larger than `keep` bytes.
    static void shrink(int64_t keep) {
        for (Workspace& buffer : buffers())
            if (buffer.bytes_ > keep) buffer.free();
    }
    static float* floats(Slot slot, int64_t count) {
        return static_cast<float*>(get(slot, count * static_cast<int64_t>(sizeof(float))));
    }

private:
    void* data_ = nullptr;
    int64_t bytes_ = 0;
    Workspace() = default;
    ~Workspace() { free(); }
    static auto buffers() -> Workspace (&)[static_cast<int>(Slot::count)] {
        static thread_local Workspace all[static_cast<int>(Slot::count)];
        return all;
    }
    void free() {
        std::free(data_);
        data_ = nullptr;
        bytes_ = 0;
    }
    void* grown(int64_t bytes) {
        if (bytes > bytes_) {
            free();
            constexpr int64_t huge_page = int64_t{1} << 21;
            const int64_t align = bytes >= huge_page ? huge_page : 64;
            const int64_t rounded = (bytes + align - 1) / align * align;
            data_ = std::aligned_alloc(static_cast<size_t>(align), static_cast<size_t>(rounded));
            if (data_ == nullptr) throw std::bad_alloc();
            bytes_ = rounded;
            expect_writes(data_, bytes_);
        }
        return data_;
    }
};

}  // namespace
}  // namespace dmtl
