// Single numbers as tensors store them. Included once for every instruction set.
#pragma once

#include <cstring>

#include "kernel.h"

namespace hscc::cpu::HSCC_ISA {

// Keeps a pointer in a register of its own: a multiply-add from memory at base + index is two operations on Intel's.
template <typename T>
inline void pin(const T*& p) {
  __asm__("" : "+r"(p));
}

inline float get(const float* p) {
  return *p;
}
inline void put(float* p, float a) {
  *p = a;
}

inline float get(const BFloat16* p) {
  const uint32_t bits = uint32_t(p->bits) << 16;
  float a;
  std::memcpy(&a, &bits, sizeof a);
  return a;
}
// To the nearest, ties to even; NaN stays NaN.
inline void put(BFloat16* p, float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  p->bits = uint16_t(a != a ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// What U, bias and outputs hold beside x and V of T.
template <typename T>
struct Beside {
  using Type = T;
};
template <>
struct Beside<Byte> {
  using Type = float;
};
template <>
struct Beside<Word> {
  using Type = float;
};
template <typename T>
constexpr bool kQuantised = sizeof(T) != sizeof(typename Beside<T>::Type);
template <typename T>
constexpr bool kWidens = kQuantised<T> && sizeof(T) > 1;  // rows of V, which hold int8

}  // namespace hscc::cpu::HSCC_ISA
