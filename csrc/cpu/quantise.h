// Inputs to 8 bits. Included once for every instruction set.
#pragma once

#include "element.h"

namespace hscc::cpu::HSCC_ISA {

// round(x / scale) + zero_point, ties to even, at least 0 and at most 255, and the zero point where x is NaN; as Word
// less the zero point. 1.5 * 2^23 is added, as the last bits of the sum are those of the nearest integer.
template <typename T>
void quantise_as(const Quantisation& q, const float* x, T* to, int64_t begin, int64_t end) {
  const float inverse = 1 / q.scale, low = float(-q.zero_point), high = float(255 - q.zero_point);
  const int32_t zero_point = q.zero_point;
  for (int64_t i = begin; i < end; ++i) {
    float a = x[i] * inverse;
    a = a == a ? a : 0;
    a = a < low ? low : a;
    a = a > high ? high : a;
    a += 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &a, sizeof bits);
    if constexpr (kWidens<T>) {
      to[i].value = int16_t(bits);
    } else {
      to[i].bits = uint8_t(bits + zero_point);
    }
  }
}

// Inputs that are in 8 bits already, to Word.
inline void widen(const Quantisation& q, const uint8_t* x, void* to, int64_t begin, int64_t end) {
  auto* words = static_cast<Word*>(to);
  const int32_t zero_point = q.zero_point;
  for (int64_t i = begin; i < end; ++i) words[i].value = int16_t(x[i] - zero_point);
}

inline void quantise(const Quantisation& q, const float* x, void* to, int64_t begin, int64_t end) {
  if (q.words) {
    quantise_as(q, x, static_cast<Word*>(to), begin, end);
  } else {
    quantise_as(q, x, static_cast<Byte*>(to), begin, end);
  }
}

}  // namespace hscc::cpu::HSCC_ISA
