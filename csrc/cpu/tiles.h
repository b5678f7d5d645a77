// How work is cut: into parts of near-equal size, tiles of positions, blocks of a tile. Included once for every
// instruction set.
#pragma once

#include "element.h"

namespace hscc::cpu::HSCC_ISA {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
template <typename A>
void swap(A& a, A& b) {
  const A c = a;
  a = b;
  b = c;
}

// Parts of near-equal size, none above ``most``: part i is [begin(i), begin(i + 1)).
struct Parts {
  int64_t count, size, larger;
  Parts(int64_t total, int64_t most) : count(ceil_div(total, most)) {
    size = count ? total / count : 0;
    larger = total - size * count;
  }
  int64_t begin(int64_t i) const { return i * size + smaller(i, larger); }
};

constexpr int kTile = 192;  // positions that stream through a factor row while it is in cache
constexpr int kMaxBlocks = kTile / kPositions;
constexpr int kSlots = 8;  // positions of a block, padded so that loops over them vectorise
static_assert(kPositions <= kSlots);

}  // namespace hscc::cpu::HSCC_ISA
