// First stages of integers by AVX-512. Included once for each instruction set that has it.
#pragma once

#include "operand.h"

namespace hscc::cpu::HSCC_ISA {

// Vectors of integers, sums in 32 bits; as these travel as floats, only their bits do.
struct Integers {
  using Type = __m512i;
  static Vec add(Vec a, Vec b) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
  static Vec lanes(Type a) { return _mm512_castsi512_ps(a); }
  static Type from_lanes(Vec a) { return _mm512_castps_si512(a); }
  static Vec scale(Vec sums, Vec offsets, Vec scales) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(add(sums, offsets))), scales);
  }
};

template <>
struct Operand<Word> : Integers {
  static constexpr int kCount = 2 * kLanes, kALane = 2;
  static Type load(const Word* p) { return _mm512_loadu_si512(p); }
  static Type load(const Word* p, int64_t n) { return _mm512_maskz_loadu_epi16(first_words(n), p); }
  static Type broadcast(const Word* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static Type broadcast(const Word* p, int64_t) { return _mm512_set1_epi32(uint16_t(p->value)); }
  static Vec dot(Type a, Type b, Vec sum) { return add(sum, lanes(_mm512_madd_epi16(a, b))); }
};

template <>
struct Operand<Byte> : Integers {
  static constexpr int kCount = 4 * kLanes, kALane = 4;
  static Type load(const Byte* p) { return _mm512_loadu_si512(p); }
  static Type load(const Byte* p, int64_t n) {
    return _mm512_maskz_loadu_epi8(n < 64 ? __mmask64((1ull << n) - 1) : ~__mmask64(0), p);
  }
  static Type broadcast(const Byte* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static Type broadcast(const Byte* p, int64_t n) {
    int32_t four = 0;
    for (int64_t i = 0; i < n; ++i) four |= p[i].bits << (8 * i);
    return _mm512_set1_epi32(four);
  }
#if defined(HSCC_VNNI)
  static Vec dot(Type a, Type b, Vec sum) { return lanes(_mm512_dpbusd_epi32(from_lanes(sum), a, b)); }
#else
  static constexpr int kMost = 64;  // up to here two products fit 16 bits
  static Vec dot(Type a, Type b, Vec sum) {
    return add(sum, lanes(_mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1))));
  }
#endif
};

}  // namespace hscc::cpu::HSCC_ISA
