// What the first stage multiplies. Included once for every instruction set.
#pragma once

#include "element.h"

namespace hscc::cpu::HSCC_ISA {

// A vector of a row or a patch: floats, and so what is stored in fewer bits is widened at each load. An instruction set
// that multiplies such numbers itself has an Operand of its own for them.
template <typename T>
struct Operand {
  using Type = Vec;
  static constexpr int kCount = kLanes;  // numbers in one
  static Type load(const T* p) { return HSCC_ISA::load(p); }
  static Type load(const T* p, int64_t n) { return HSCC_ISA::load(p, n); }  // zeros from n on
  static Vec dot(Type a, Type b, Vec sum) { return fma(a, b, sum); }
};

}  // namespace hscc::cpu::HSCC_ISA
