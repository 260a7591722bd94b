// Exact one-to-one matching of two sets of pixels that change a little at a time.
//
// Of all matchings that pair pixels at most `reach` apart, it finds one with the minimum of
//
//     sum over pairs of their distance + 100 reach * (pixels of both sides without a partner, except spare ones)
//
// A spare pixel may have a partner, and costs nothing without one. Distances and costs are integers, in hundredths of a pixel.
// Of matchings with equal cost, one with more pairs wins. So the number of pairs only depends on the two sets, and not on the
// changes that led to them.
//
// Every pixel has a price >= 0. The gain of a pair is what its pixels would cost without a partner, minus their distance. The
// conditions
//
//     price(a) + price(b) >= gain(a, b),     = gain(a, b) for partners,     price = 0 without a partner
//
// prove that no matching has a larger total gain (linear-programming duality). Changes only break the last condition, and only
// for pixels that are inserted or lose their partner. `settle` restores it for one of them along a shortest path of alternating
// pairs (Dijkstra's algorithm on price(a) + price(b) - gain(a, b)), which only visits the neighbourhood where prices change.
#pragma once

#include "dmtl/bit_image.h"
#include "dmtl/workspace.h"

#include <cmath>
#include <initializer_list>

namespace dmtl {
namespace {

// A growing list of plain elements.
template <class T>
class List {
public:
    List() = default;
    ~List() { std::free(data_); }
    List(const List&) = delete;
    List& operator=(const List&) = delete;
    DMTL_INLINE void push(T value) {
        if (size_ == room_) grow();
        data_[size_++] = value;
    }
    void clear() { size_ = 0; }
    int64_t size() const { return size_; }
    DMTL_INLINE T& operator[](int64_t i) const { return data_[i]; }
    void shrink(int64_t size) { size_ = size; }

private:
    void grow() {
        room_ = room_ > 0 ? 2 * room_ : 256;
        void* larger = std::realloc(data_, static_cast<size_t>(room_) * sizeof(T));
        if (larger == nullptr) throw std::bad_alloc();
        data_ = static_cast<T*>(larger);
    }
    T* data_ = nullptr;
    int64_t size_ = 0, room_ = 0;
};

// A heap of (distance, pixel), smallest first.
class Queue {
public:
    bool empty() const { return heap_.size() == 0; }
    void clear() { heap_.clear(); }
    void push(int32_t distance, int32_t pixel) {
        const uint64_t key = static_cast<uint64_t>(distance) << 32 | static_cast<uint32_t>(pixel);
        heap_.push(key);
        int64_t i = heap_.size() - 1;
        for (; i > 0 && heap_[(i - 1) / 2] > key; i = (i - 1) / 2) heap_[i] = heap_[(i - 1) / 2];
        heap_[i] = key;
    }
    void pop(int32_t& distance, int32_t& pixel) {
        distance = static_cast<int32_t>(heap_[0] >> 32), pixel = static_cast<int32_t>(heap_[0] & 0xffffffffu);
        const int64_t last = heap_.size() - 1;
        const uint64_t key = heap_[last];
        heap_.shrink(last);
        int64_t i = 0;
        for (int64_t child = 1; child < last; child = 2 * i + 1) {
            if (child + 1 < last && heap_[child + 1] < heap_[child]) ++child;
            if (heap_[child] >= key) break;
            heap_[i] = heap_[child], i = child;
        }
        if (last > 0) heap_[i] = key;
    }

private:
    List<uint64_t> heap_;
};

class Matching {
public:
    const int64_t h, w;

    // `reach` is in pixels, at most kMostReach.
    Matching(int64_t height, int64_t width, double reach)
        : h(height), w(width), radius_(static_cast<int64_t>(reach)), half_(radius_ + 1), distance_((radius_ + 1) * (radius_ + 1)),
          outlier_(static_cast<int32_t>(std::ceil(kHundredths * kOutlier * reach))),
          sides_{{BitImage(height, width), nodes(height * width)}, {BitImage(height, width), nodes(height * width) + height * width}} {
        for (int64_t dy = 0; dy <= radius_; ++dy)
            for (int64_t dx = 0; dx <= radius_; ++dx) {
                const double square = static_cast<double>(dy * dy + dx * dx);
                if (square > reach * reach) continue;
                half_[dy] = dx;
                distance_[dy * (radius_ + 1) + dx] = static_cast<int32_t>(std::lrint(kHundredths * std::sqrt(square)));
            }
    }

    static constexpr double kMostReach = 20000.0;  // so that sums of two gains fit into 32-bit integers
    static constexpr double kHundredths = 100.0, kOutlier = 100.0;

    const BitImage& pixels(int side) const { return sides_[side].present; }

    // After insertions and removals, `settle_all` makes the matching optimal again.
    void insert(int side, int64_t pixel, bool spare) {
        Node& node = sides_[side].nodes[pixel];
        node.mate = kNone, node.price = node.search = 0, node.alone = spare ? 0 : outlier_;
        each_neighbour(side, pixel, [&](int64_t other, int32_t distance) {
            const Node& neighbour = sides_[1 - side].nodes[other];
            const int32_t missing = gain(node, neighbour, distance) - neighbour.price;
            if (missing > node.price) node.price = missing;
        });
        sides_[side].present.set(pixel / w, pixel % w);
        if (node.price > 0) loose_[side].push(static_cast<int32_t>(pixel));
    }

    void remove(int side, int64_t pixel) {
        sides_[side].present.clear(pixel / w, pixel % w);
        const int32_t mate = sides_[side].nodes[pixel].mate;
        sides_[side].nodes[pixel].price = 0;
        if (mate == kNone) return;
        --pairs_;
        sides_[1 - side].nodes[mate].mate = kNone;
        loose_[1 - side].push(mate);
    }

    void settle_all() {
        for (int side : {0, 1}) {
            for (int64_t i = 0; i < loose_[side].size(); ++i) settle(side, loose_[side][i]);
            loose_[side].clear();
        }
    }

    int64_t pairs() const { return pairs_; }

    // Whether a pixel, which must be inserted, has a partner.
    bool paired(int side, int64_t pixel) const { return sides_[side].nodes[pixel].mate != kNone; }

    // Calls body for the pixels of one image that are not in the other; it may change both images at the pixel.
    template <class Body>
    static void each_pixel(const BitImage& image, const BitImage& without, const Body& body) {
        for (int64_t y = 0; y < image.h; ++y)
            for (int64_t i = 0; i < image.words; ++i)
                for (uint64_t left = image.row(y)[i] & ~without.row(y)[i]; left != 0; left &= left - 1)
                    body(y * image.w + i * kWordBits + __builtin_ctzll(left));
    }

private:
    static constexpr int32_t kNone = -1;

    // alone: the cost of having no partner. distance and parent belong to the search with the number `search`.
    struct Node {
        int32_t mate, price, alone, distance, parent, search;
    };
    struct Side {
        const BitImage present;
        Node* const nodes;
    };

    // The nodes of both sides, undefined until a pixel is inserted. A thread can have one matching at a time.
    static Node* nodes(int64_t pixels) {
        return static_cast<Node*>(Workspace::get(Slot::other, 2 * pixels * static_cast<int64_t>(sizeof(Node))));
    }

    // Twice the gain plus one, so that matchings with different numbers of pairs never have the same gain.
    DMTL_INLINE static int32_t gain(const Node& a, const Node& b, int32_t distance) {
        return 2 * (a.alone + b.alone - distance) + 1;
    }

    // Calls body(pixel of the other side, distance) for all pixels within reach.
    template <class Body>
    DMTL_INLINE void each_neighbour(int side, int64_t pixel, const Body& body) const {
        const BitImage& others = sides_[1 - side].present;
        const int64_t y = pixel / w, x = pixel % w;
        const int64_t top = y > radius_ ? y - radius_ : 0, bottom = y + radius_ < h ? y + radius_ : h - 1;
        for (int64_t row = top; row <= bottom; ++row) {
            const int64_t dy = row > y ? row - y : y - row, half = half_[dy];
            const int32_t* distances = distance_.data() + dy * (radius_ + 1);
            const int64_t left = x > half ? x - half : 0, right = x + half < w ? x + half : w - 1;
            const uint64_t* words = others.row(row);
            for (int64_t i = left / kWordBits; i <= right / kWordBits; ++i) {
                uint64_t bits = words[i];
                if (i == left / kWordBits) bits &= ~uint64_t{0} << (left % kWordBits);
                if (i == right / kWordBits) bits &= ~uint64_t{0} >> (kWordBits - 1 - right % kWordBits);
                for (; bits != 0; bits &= bits - 1) {
                    const int64_t at = i * kWordBits + __builtin_ctzll(bits);
                    body(row * w + at, distances[at > x ? at - x : x - at]);
                }
            }
        }
    }

    // Finds a partner for a pixel whose price is positive, or reduces the price to zero.
    void settle(int side, int32_t root) {
        Node *const mine = sides_[side].nodes, *const theirs = sides_[1 - side].nodes;
        if (mine[root].mate != kNone || mine[root].price == 0) return;
        ++searches_;
        queue_.clear(), reached_.clear();
        // The path ends at a pixel of the other side without a partner (`free`), or at one of this side that gives up its
        // partner and whose price then becomes zero (`giving`; if this is the root, it stays without a partner).
        int32_t shortest = mine[root].price, giving = root, free = kNone;
        mine[root].distance = 0;
        queue_.push(0, root);
        while (!queue_.empty()) {
            int32_t distance, pixel;
            queue_.pop(distance, pixel);
            if (distance >= shortest) break;
            if (distance > mine[pixel].distance) continue;  // a shorter path to it was found in the meantime
            reached_.push(pixel);
            const int32_t base = distance + mine[pixel].price;
            each_neighbour(side, pixel, [&](int64_t other, int32_t apart) {
                Node& node = theirs[other];
                const int32_t along = base - gain(mine[pixel], node, apart) + node.price;
                if (along >= shortest || (node.search == searches_ && node.distance <= along)) return;
                node.search = searches_, node.distance = along, node.parent = pixel;
                if (node.mate == kNone) {
                    shortest = along, free = static_cast<int32_t>(other);
                    return;
                }
                Node& mate = mine[node.mate];
                mate.distance = along;
                queue_.push(along, node.mate);
                if (along + mate.price < shortest) shortest = along + mate.price, giving = node.mate, free = kNone;
            });
        }
        for (int64_t i = 0; i < reached_.size(); ++i) {
            Node& node = mine[reached_[i]];
            const int32_t change = shortest - node.distance;
            node.price -= change;
            if (node.mate != kNone) theirs[node.mate].price += change;
        }
        if (free == kNone) {
            if (giving == root) return;
            free = mine[giving].mate;
            mine[giving].mate = kNone;
        } else {
            ++pairs_;
        }
        for (int32_t other = free; other != kNone;) {  // every pixel of this side on the path gets the next one as its partner
            const int32_t pixel = theirs[other].parent, before = mine[pixel].mate;
            theirs[other].mate = pixel, mine[pixel].mate = other;
            other = pixel == root ? kNone : before;
        }
    }

    const int64_t radius_;
    const Array<int64_t> half_;      // [|dy|]: the largest |dx| within reach
    const Array<int32_t> distance_;  // [|dy|, |dx|], hundredths of a pixel
    const int32_t outlier_;
    const Side sides_[2];
    List<int32_t> loose_[2];  // pixels whose price may be positive although they have no partner
    Queue queue_;
    List<int32_t> reached_;
    int32_t searches_ = 0;
    int64_t pairs_ = 0;
};

}  // namespace
}  // namespace dmtl
