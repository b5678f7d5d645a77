// First stages of integers by AVX2. Included once for each instruction set that has it.
#pragma once

#include "operand.h"

namespace hscc::cpu::HSCC_ISA {

// Vectors of integers, sums in 32 bits; as these travel as floats, only their bits do.
struct Integers {
  using Type = __m256i;
  static Vec add(Vec a, Vec b) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  static Vec lanes(Type a) { return _mm256_castsi256_ps(a); }
  static Type from_lanes(Vec a) { return _mm256_castps_si256(a); }
  static Vec scale(Vec sums, Vec offsets, Vec scales) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_castps_si256(add(sums, offsets))), scales);
  }
};

// What Words and Bytes load alike: zeros from the ``n``-th on.
template <typename T>
struct Loads : Integers {
  static constexpr int kCount = sizeof(Type) / sizeof(T), kALane = kCount / kLanes;
  static Type load(const T* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Type load(const T* p, int64_t n) {
    constexpr int64_t kLane = sizeof(int32_t) / sizeof(T);
    if (n % kLane != 0) return load_odd(p, n);
    return _mm256_maskload_epi32(reinterpret_cast<const int32_t*>(p), first(n / kLane));
  }
  [[gnu::noinline]] static Type load_odd(const T* p, int64_t n) {  // else its memory crowds out the sums' registers
    T all[kCount] = {};
    for (int64_t i = 0; i < n; ++i) all[i] = p[i];
    return load(all);
  }
  static Type broadcast(const T* p) {
    int32_t lane;
    std::memcpy(&lane, p, sizeof lane);
    return _mm256_set1_epi32(lane);
  }
  static Type broadcast(const T* p, int64_t n) {
    T all[kALane] = {};
    for (int64_t i = 0; i < n; ++i) all[i] = p[i];
    return broadcast(all);
  }
};

template <>
struct Operand<Word> : Loads<Word> {
  static Vec dot(Type a, Type b, Vec sum) { return add(sum, lanes(_mm256_madd_epi16(a, b))); }
};

template <>
struct Operand<Byte> : Loads<Byte> {
#if defined(HSCC_VNNI)
  static Vec dot(Type a, Type b, Vec sum) { return lanes(_mm256_dpbusd_avx_epi32(from_lanes(sum), a, b)); }
#else
  static constexpr int kMost = 64;  // up to here two products fit 16 bits
  static Vec dot(Type a, Type b, Vec sum) {
    return add(sum, lanes(_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1))));
  }
#endif
};

}  // namespace hscc::cpu::HSCC_ISA
