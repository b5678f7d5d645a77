// First stage: Z = V x, inner products of factor rows with patches. Included once for every instruction set.
//
// The vector lanes run along the patch, so each accumulator is one (row, position) pair: ranks of any size fill the
// registers, and neither rows nor positions need to be next to each other in memory.
#pragma once

#include "operand.h"
#include "patches.h"

namespace hscc::cpu::HSCC_ISA {

// Sums the lanes of acc[i] into lane i, for up to kLanes of them: a tree that folds pairs at distance 1, 2, 4, ...
// The order of the additions is the same for every count, so that no result depends on how work was cut into tiles.
template <typename T, int kDistance, int kCount>
inline Vec merge(Vec* acc) {
  if constexpr (kDistance == kLanes)
    return acc[0];
  else {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; i += 2)
      acc[i / 2] = fold<kDistance>(acc[i], acc[i + 1 < kCount ? i + 1 : i], Operand<T>::add);
    return merge<T, 2 * kDistance, (kCount + 1) / 2>(acc);
  }
}

// out[i] = the sum of the lanes of acc[i]. Destroys acc.
template <typename T, int kCount>
inline void reduce(Vec* acc, float* out) {
  constexpr int kGroup = kCount < kLanes ? kCount : kLanes;
  store(out, merge<T, 1, kGroup>(acc), kGroup);
  if constexpr (kCount > kLanes) reduce<T, kCount - kLanes>(acc + kLanes, out + kLanes);
}

// What comes next, to be fetched into the second-level cache ``step`` bytes at a time: pixels and outputs of large
// maps; rows, since V outgrows that cache where every region has its own and comes from the third level once a tile.
struct Ahead {
  const char* next;
  int64_t step;
};

// Adds to acc[n][m] row n . patch m over one segment, for the first kValid patches of a block.
template <typename T, int M, int N, int kValid>
[[gnu::always_inline]] inline void dot_segment(Vec* acc, const T* const* v, const T* const* patch, int64_t length,
                                               Ahead& ahead) {
  const auto step = [&](int64_t k, auto... count) __attribute__((always_inline)) {
    typename Operand<T>::Type b[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) b[n] = Operand<T>::load(v[n] + k, count...);
#pragma GCC unroll 8
    for (int m = 0; m < kValid; ++m) {
      auto a = Operand<T>::load(patch[m] + k, count...);
      if constexpr (N > 1) pin(a);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[n * M + m] = Operand<T>::dot(a, b[n], acc[n * M + m]);
    }
  };
  constexpr int kCount = Operand<T>::kCount;
  int64_t k = 0;
  for (; k + kCount <= length; k += kCount, ahead.next += ahead.step) {
    __builtin_prefetch(ahead.next, 0, 2);
    step(k);
  }
  if (k < length) step(k, length - k);
}

// The same for a number of patches that is known later.
template <typename T, int M, int N, int kValid = M>
[[gnu::always_inline]] inline void dot_valid(int64_t valid, Vec* acc, const T* const* v, const T* const* patch,
                                             int64_t length, Ahead& ahead) {
  if constexpr (kValid > 1) {
    if (valid < kValid) return dot_valid<T, M, N, kValid - 1>(valid, acc, v, patch, length, ahead);
  }
  dot_segment<T, M, N, kValid>(acc, v, patch, length, ahead);
}

// z[n][m] = row n . patch m of a block; ``kCounted``: only the valid patches of each segment.
template <typename T, bool kCounted, int M, int N>
void dot_block(const Block<T>& block, const T* const* rows, float* z, Ahead ahead) {
  Vec acc[N * M];
#pragma GCC unroll 32
  for (int i = 0; i < N * M; ++i) acc[i] = zero();
  const T* const* x = block.pointers;
  const Segment* end = block.segments + block.segment_count;
  for (const Segment* segment = block.segments; segment != end; ++segment, x += block.step) {
    const T *v[N], *patch[M];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) v[n] = rows[n] + segment->v_offset;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) patch[m] = x[m] + segment->x_offset;
    if constexpr (kCounted) {
      dot_valid<T, M, N>(segment->valid, acc, v, patch, segment->length, ahead);
    } else {
      dot_segment<T, M, N, M>(acc, v, patch, segment->length, ahead);
    }
  }
  reduce<T, N * M>(acc, z);
}

template <typename T>
using DotBlock = void (*)(const Block<T>&, const T* const* rows, float* z, Ahead ahead);

template <typename T, bool kCounted, int M = kPositions, int N = kRows>
constexpr DotBlock<T> select_dot_block(int positions, int rows) {
  if constexpr (M > 1) {
    if (positions < M) return select_dot_block<T, kCounted, M - 1, N>(positions, rows);
  }
  if constexpr (N > 1) {
    if (rows < N) return select_dot_block<T, kCounted, M, N - 1>(positions, rows);
  }
  return dot_block<T, kCounted, M, N>;
}

}  // namespace hscc::cpu::HSCC_ISA
