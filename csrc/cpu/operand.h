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
  static constexpr int kALane = kCount / kLanes;
  static Type load(const T* p) { return HSCC_ISA::load(p); }
  static Type load(const T* p, int64_t n) { return HSCC_ISA::load(p, n); }       // zeros from n on
  static Type broadcast(const T* p) { return HSCC_ISA::broadcast(p); }           // kALane numbers into each lane
  static Type broadcast(const T* p, int64_t) { return HSCC_ISA::broadcast(p); }  // fewer, the end of a patch
  static Vec add(Vec a, Vec b) { return HSCC_ISA::add(a, b); }
  static Vec dot(Type a, Type b, Vec sum) { return fma(a, b, sum); }
  static Vec lanes(Type a) { return a; }
  static Type from_lanes(Vec a) { return a; }
};

}  // namespace hscc::cpu::HSCC_ISA
