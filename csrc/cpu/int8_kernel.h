// Which numbers an int8 call multiplies. Included once for every instruction set that has both.
#pragma once

#include "region_kernel.h"

namespace hscc::cpu::HSCC_ISA {

// Whether some number of V is larger than those that are multiplied as Byte.
inline bool needs_words(const int8_t* v, int64_t count) {
  int8_t low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = v[i] < low ? v[i] : low;
    high = v[i] > high ? v[i] : high;
  }
  return high > Operand<Byte>::kMost || low < -Operand<Byte>::kMost;
}

inline void convolve_int8(const PlanView& plan, const Span* spans, int64_t span_count) {
  (plan.quantisation.words ? run_as<Word> : run_as<Byte>)(plan, spans, span_count);
}

}  // namespace hscc::cpu::HSCC_ISA
