// Vectors of AVX2. Included once for each instruction set that has them.
#pragma once

#include <immintrin.h>

#include "kernel.h"

namespace hscc::cpu::HSCC_ISA {

using Vec = __m256;
constexpr int kLanes = 8;

// Register tiles out of 16 registers: 4 x 3 accumulators, 3 operands of one side, one of the other.
constexpr int kPositions = 4;
constexpr int kRows = 3;
constexpr int kVectors = 3;

inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec zero() {
  return _mm256_setzero_ps();
}
inline Vec broadcast(const float* p) {
  return _mm256_broadcast_ss(p);
}
inline Vec broadcast(const BFloat16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi16(short(p->bits)), 16));
}
inline Vec load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline Vec load(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first(n));
}
inline void store(float* p, Vec a) {
  _mm256_storeu_ps(p, a);
}
inline void store(float* p, Vec a, int64_t n) {
  _mm256_maskstore_ps(p, first(n), a);
}
inline Vec load(const BFloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Vec load(const BFloat16* p, int64_t n) {
  BFloat16 all[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) all[i] = p[i];
  return load(all);
}
inline void store(BFloat16* p, Vec a) {
  const __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i result = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store(BFloat16* p, Vec a, int64_t n) {
  BFloat16 all[kLanes];
  store(all, a);
  for (int64_t i = 0; i < n; ++i) p[i] = all[i];
}
inline void fence() {}  // nothing is streamed: a vector fills no line
// One load into a register, where the compiler would rather repeat the memory operand in every use.
inline void pin(Vec& a) {
  __asm__("" : "+x"(a));
}
inline void pin(__m256i& a) {
  __asm__("" : "+x"(a));
}
inline Vec add(Vec a, Vec b) {
  return _mm256_add_ps(a, b);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline Vec relu(Vec a) {
  return _mm256_max_ps(_mm256_setzero_ps(), a);
}  // keeps NaN, as the second operand
inline Vec gather(const float* p, const int32_t* index, int64_t n) {
  const __m256i mask = first(n);
  return _mm256_mask_i32gather_ps(zero(), p, _mm256_maskload_epi32(index, mask), _mm256_castsi256_ps(mask), 4);
}

// Bit m: whether 0 <= at[m] + shift < bound, for eight numbers; bound >= 0.
inline uint32_t below(const int32_t* at, int32_t shift, int32_t bound) {
  const __m256i least = _mm256_set1_epi32(INT32_MIN);  // turns the order of unsigned numbers into that of signed ones
  const __m256i shifted = _mm256_add_epi32(_mm256_loadu_si256((const __m256i*)at), _mm256_set1_epi32(shift));
  const __m256i less =
      _mm256_cmpgt_epi32(_mm256_xor_si256(_mm256_set1_epi32(bound), least), _mm256_xor_si256(shifted, least));
  return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(less)));
}

// Pairs (a[i], b[i]) of the lower or of the upper half of the lanes.
template <int kHalf>
inline Vec interleave(Vec a, Vec b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), kHalf ? 0x31 : 0x20);
}

// In every group of 2 * kDistance lanes: the halves of a summed by ``add``, then those of b.
template <int kDistance>
inline Vec fold(Vec a, Vec b, auto add) {
  if constexpr (kDistance == 4) {
    return add(_mm256_blend_ps(a, b, 0xf0), _mm256_permute2f128_ps(a, b, 0x21));
  } else if constexpr (kDistance == 2) {
    return add(_mm256_blend_ps(a, b, 0xcc), _mm256_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 3, 2)));
  } else {
    const __m256 even = _mm256_movehdup_ps(a), odd = _mm256_moveldup_ps(b);
    return add(_mm256_blend_ps(a, b, 0xaa), _mm256_blend_ps(even, odd, 0xaa));
  }
}

}  // namespace hscc::cpu::HSCC_ISA
