// Both stages on a processor that multiplies pairs of bfloat16 and sums them as floats; denormal numbers count as zero.
#pragma once

#include "operand.h"
#include "second_stage.h"

namespace hscc::cpu::HSCC_ISA {

template <>
struct Operand<BFloat16> {
  using Type = __m512i;
  static constexpr int kCount = 2 * kLanes, kALane = 2;
  static Type load(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static Type load(const BFloat16* p, int64_t n) { return _mm512_maskz_loadu_epi16(first_words(n), p); }
  static Type broadcast(const BFloat16* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static Type broadcast(const BFloat16* p, int64_t) { return _mm512_set1_epi32(p->bits); }
  static Vec add(Vec a, Vec b) { return HSCC_ISA::add(a, b); }
  static Vec lanes(Type a) { return _mm512_castsi512_ps(a); }
  static Type from_lanes(Vec a) { return _mm512_castps_si512(a); }
  static Vec dot(Type a, Type b, Vec sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
};

// Floats to bfloat16, b behind a.
inline __m512i narrow(Vec a, Vec b) {
  return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

// An order of the words of a vector: bit kHigh of a place says which half its word comes from, the other bits which
// word.
template <int kHigh>
inline __m512i halves() {
  alignas(64) static constexpr auto kIndex = [] {
    struct {
      uint16_t word[32];
    } index{};
    for (int i = 0; i < 32; ++i) {
      const int bit = (i >> kHigh) & 1;
      index.word[i] = uint16_t(16 * bit + (((i >> (kHigh + 1)) << kHigh) | (i & ((1 << kHigh) - 1))));
    }
    return index;
  }();
  return _mm512_load_si512(kIndex.word);
}

// Z rounded and in pairs of rows, (rank / 2, M) of them, or (M, rank / 2); U is read two rows at a time.
template <>
struct SecondStage<BFloat16> {
  using Z = uint32_t;
  static constexpr bool kPacks = true;
  static constexpr int kChannels = 2 * kLanes, kMost = kVectors / 2;

  static const Z* pack(const float* z, int64_t stride, bool by_position, int64_t rank, int positions, Z* to) {
    if (by_position) {
      for (int m = 0; m < positions; ++m, z += stride) {
        for (int64_t k = 0; k < rank; k += 2 * kLanes) {
          const int64_t n = rank - k, low = smaller(n, kLanes), high = smaller(n - low, kLanes);
          const __m512i words = narrow(load(z + k, low), load(z + k + low, high));
          _mm512_mask_storeu_epi32(to + m * (stride / 2) + k / 2, first((low + high + 1) / 2), words);
        }
      }
    } else {
      const __m512i pairs = halves<0>();
      for (int64_t k = 0; k < rank; k += 2, z += 2 * positions) {
        const Vec even = load(z, positions), odd = k + 1 < rank ? load(z + positions, positions) : zero();
        _mm512_mask_storeu_epi32(to + k / 2 * positions, first(positions),
                                 _mm512_permutexvar_epi16(pairs, narrow(even, odd)));
      }
    }
    return to;
  }

  template <bool kByPosition, int M, int N>
  static void block(const Cluster<BFloat16>& cluster, const Z* z, int64_t stride, BFloat16* const* out, int64_t offset,
                    int64_t last) {
    Vec acc[M * 2 * N];  // of 32 channels the first four of each eight, then the others
#pragma GCC unroll 32
    for (int i = 0; i < M * 2 * N; ++i) acc[i] = zero();
    const BFloat16* u = cluster.u;
    for (int64_t k = 0; k < cluster.rank; k += 2, u += 2 * cluster.stride, z += kByPosition ? 1 : M) {
      __m512i b[2 * N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const int64_t count = n + 1 < N ? kChannels : last;
        const __m512i even = Operand<BFloat16>::load(u + n * kChannels, count);
        const int64_t odd_count = k + 1 < cluster.rank ? count : 0;
        const __m512i odd = Operand<BFloat16>::load(u + cluster.stride + n * kChannels, odd_count);
        b[2 * n] = _mm512_unpacklo_epi16(even, odd);
        b[2 * n + 1] = _mm512_unpackhi_epi16(even, odd);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        __m512i a = _mm512_set1_epi32(int(z[kByPosition ? m * (stride / 2) : m]));
        pin(a);
#pragma GCC unroll 8
        for (int n = 0; n < 2 * N; ++n) acc[m * 2 * N + n] = Operand<BFloat16>::dot(a, b[n], acc[m * 2 * N + n]);
      }
    }
    const __m512i order = halves<2>();
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const int64_t count = n + 1 < N ? kChannels : last, low = smaller(count, kLanes);
      const float* p = cluster.bias + n * kChannels;
      const Vec b0 = load(p, low), b1 = load(p + low, count - low);
      const __m512i fours = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
      const Vec bias[2] = {_mm512_permutex2var_ps(b0, fours, b1),
                           _mm512_permutex2var_ps(b0, _mm512_add_epi32(fours, _mm512_set1_epi32(4)), b1)};
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        Vec y[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          y[i] = add(acc[m * 2 * N + 2 * n + i], bias[i]);
          if (cluster.relu) y[i] = relu(y[i]);
        }
        const __m512i words = _mm512_permutexvar_epi16(order, narrow(y[0], y[1]));
        BFloat16* p = out[m] + offset + n * kChannels;
        if (cluster.streams) {
          _mm512_stream_si512(reinterpret_cast<__m512i*>(p), words);
        } else {
          _mm512_mask_storeu_epi16(p, first_words(count), words);
        }
      }
    }
  }
};

}  // namespace hscc::cpu::HSCC_ISA
