// Vectors of AVX-512. Included once for each instruction set that has them.
#pragma once

#include <immintrin.h>

#include "kernel.h"

namespace hscc::cpu::HSCC_ISA {

using Vec = __m512;
constexpr int kLanes = 16;

// Register tiles out of 32 registers: 6 x 4 accumulators, 4 operands of one side, one of the other.
constexpr int kPositions = 6;
constexpr int kRows = 4;
constexpr int kVectors = 4;

inline __mmask16 first(int64_t n) {
  return __mmask16((1u << n) - 1);
}
inline Vec zero() {
  return _mm512_setzero_ps();
}
inline Vec broadcast(const float* p) {
  return _mm512_set1_ps(*p);
}
inline Vec broadcast(const BFloat16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_set1_epi16(short(p->bits)), 16));
}
inline Vec load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline Vec load(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(first(n), p);
}
inline void store(float* p, Vec a) {
  _mm512_storeu_ps(p, a);
}
inline void store(float* p, Vec a, int64_t n) {
  _mm512_mask_storeu_ps(p, first(n), a);
}
// A whole line, aligned, past the caches: it is not read first, nor does it take the place of other lines.
inline void stream(float* p, Vec a) {
  _mm512_stream_ps(p, a);
}
// Streamed lines come before whatever this thread does next.
inline void fence() {
  _mm_sfence();
}
inline Vec load(const BFloat16* p, int64_t n = kLanes) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store(BFloat16* p, Vec a, int64_t n = kLanes) {
  const __m512i bits = _mm512_castps_si512(a), high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __m512i result = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, quiet);
  _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(result));
}
inline void copy(BFloat16* to, const BFloat16* from, int64_t n = kLanes) {
  _mm256_mask_storeu_epi16(to, first(n), _mm256_maskz_loadu_epi16(first(n), from));
}
// One load into a register, where the compiler would rather repeat the memory operand in every use.
inline void pin(Vec& a) {
  __asm__("" : "+v"(a));
}
inline void pin(__m512i& a) {
  __asm__("" : "+v"(a));
}
inline __mmask32 first_words(int64_t n) {
  return __mmask32((1ull << n) - 1);
}
inline Vec add(Vec a, Vec b) {
  return _mm512_add_ps(a, b);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Vec relu(Vec a) {
  return _mm512_max_ps(_mm512_setzero_ps(), a);
}  // keeps NaN, as the second operand
inline Vec gather(const float* p, const int32_t* index, int64_t n) {
  const __mmask16 mask = first(n);
  return _mm512_mask_i32gather_ps(zero(), mask, _mm512_maskz_loadu_epi32(mask, index), p, 4);
}

// Bit m: whether 0 <= at[m] + shift < bound, for eight numbers; bound >= 0.
inline uint32_t below(const int32_t* at, int32_t shift, int32_t bound) {
  const __m256i shifted = _mm256_add_epi32(_mm256_loadu_si256((const __m256i*)at), _mm256_set1_epi32(shift));
  return _mm256_cmplt_epu32_mask(shifted, _mm256_set1_epi32(bound));
}

// Pairs (a[i], b[i]) of the lower or of the upper half of the lanes.
template <int kHalf>
inline Vec interleave(Vec a, Vec b) {
  const __m512i lower = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return _mm512_permutex2var_ps(a, kHalf ? _mm512_add_epi32(lower, _mm512_set1_epi32(8)) : lower, b);
}

// In every group of 2 * kDistance lanes: the halves of a summed by ``add``, then those of b.
template <int kDistance>
inline Vec fold(Vec a, Vec b, auto add) {
  if constexpr (kDistance == 8) {
    const __m512d mixed = _mm512_castps_pd(_mm512_mask_blend_ps(0xff00, a, b));
    const __m512i crossed = _mm512_alignr_epi64(_mm512_castps_si512(b), _mm512_castps_si512(a), 4);
    return add(_mm512_castpd_ps(mixed), _mm512_castsi512_ps(crossed));
  } else if constexpr (kDistance == 4) {
    const __m512 mixed = _mm512_mask_blend_ps(0xf0f0, a, b);
    const __m512i index = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
    return add(mixed, _mm512_permutex2var_ps(a, index, b));
  } else if constexpr (kDistance == 2) {
    return add(_mm512_mask_blend_ps(0xcccc, a, b), _mm512_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 3, 2)));
  } else {
    const __m512 mixed = _mm512_mask_blend_ps(0xaaaa, a, b);
    const __m512i index = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    return add(mixed, _mm512_permutex2var_ps(a, index, b));
  }
}

}  // namespace hscc::cpu::HSCC_ISA
