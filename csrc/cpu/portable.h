// Vectors of four floats, for any processor. Included once for each kernel of it.
#pragma once

#include "element.h"

namespace hscc::cpu::HSCC_ISA {

typedef float Vec __attribute__((vector_size(16), aligned(4)));  // SSE, NEON or whatever four floats become
constexpr int kLanes = 4;

constexpr int kPositions = 4;
constexpr int kRows = 2;
constexpr int kVectors = 2;

inline Vec zero() {
  return Vec{};
}
template <typename T>
inline Vec broadcast(const T* p) {
  const float a = get(p);
  return Vec{a, a, a, a};
}
inline Vec load(const float* p) {
  return *reinterpret_cast<const Vec*>(p);
}
inline Vec load(const float* p, int64_t n) {
  Vec a{};
  for (int64_t i = 0; i < n; ++i) a[i] = p[i];
  return a;
}
inline void store(float* p, Vec a) {
  *reinterpret_cast<Vec*>(p) = a;
}
inline void store(float* p, Vec a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = a[i];
}
inline Vec load(const BFloat16* p, int64_t n = kLanes) {
  Vec a{};
  for (int64_t i = 0; i < n; ++i) a[i] = get(p + i);
  return a;
}
inline void store(BFloat16* p, Vec a, int64_t n = kLanes) {
  for (int64_t i = 0; i < n; ++i) put(p + i, a[i]);
}
inline void fence() {}  // nothing is streamed: a vector fills no line
template <typename V>
inline void pin(V&) {}
inline Vec add(Vec a, Vec b) {
  return a + b;
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return a * b + c;
}
inline Vec relu(Vec a) {
  return a <= zero() ? zero() : a;
}  // keeps NaN
inline Vec gather(const float* p, const int32_t* index, int64_t n) {
  Vec a{};
  for (int64_t i = 0; i < n; ++i) a[i] = p[index[i]];
  return a;
}

// Bit m: whether 0 <= at[m] + shift < bound, for eight numbers; bound >= 0.
inline uint32_t below(const int32_t* at, int32_t shift, int32_t bound) {
  uint32_t bits = 0;
  for (int m = 0; m < 8; ++m) bits |= uint32_t(uint32_t(at[m]) + uint32_t(shift) < uint32_t(bound)) << m;
  return bits;
}

// Pairs (a[i], b[i]) of the lower or of the upper half of the lanes.
template <int kHalf>
inline Vec interleave(Vec a, Vec b) {
  constexpr int k = 2 * kHalf;
  return Vec{a[k], b[k], a[k + 1], b[k + 1]};
}

// In every group of 2 * kDistance lanes: the halves of a summed by ``add``, then those of b.
template <int kDistance>
inline Vec fold(Vec a, Vec b, auto add) {
  if constexpr (kDistance == 2) {
    return add(Vec{a[0], a[1], b[0], b[1]}, Vec{a[2], a[3], b[2], b[3]});
  } else {
    return add(Vec{a[0], b[0], a[2], b[2]}, Vec{a[1], b[1], a[3], b[3]});
  }
}

}  // namespace hscc::cpu::HSCC_ISA
