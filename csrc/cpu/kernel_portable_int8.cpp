#define HSCC_ISA portable_int8

#include "portable.h"
#include "quantise.h"
#include "region_kernel.h"

namespace hscc::cpu::HSCC_ISA {

// First stages of integers, sums in 32 bits; as these travel as floats, only their bits do.
template <>
struct Operand<Word> {
  typedef int16_t Type __attribute__((vector_size(16)));
  typedef int32_t Sums __attribute__((vector_size(16)));
  static constexpr int kCount = 2 * kLanes, kALane = 2;
  static Type load(const Word* p, int64_t n = kCount) {
    Type a{};
    std::memcpy(&a, p, size_t(n) * sizeof(Word));
    return a;
  }
  static Type broadcast(const Word* p, int64_t n = kALane) {
    const int16_t a = p[0].value, b = n > 1 ? p[1].value : int16_t(0);
    return Type{a, b, a, b, a, b, a, b};
  }
  static Vec add(Vec a, Vec b) { return Vec(Sums(a) + Sums(b)); }
  static Vec lanes(Type a) { return Vec(a); }
  static Type from_lanes(Vec a) { return Type(a); }
  static Vec dot(Type a, Type b, Vec sum) {
    Sums products;
    for (int i = 0; i < kLanes; ++i) products[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
    return add(sum, Vec(products));
  }
  static Vec scale(Vec sums, Vec offsets, Vec scales) {
    return __builtin_convertvector(Sums(add(sums, offsets)), Vec) * scales;
  }
};

}  // namespace hscc::cpu::HSCC_ISA

namespace hscc::cpu {
const Int8Kernels int8_portable = {[](const int8_t*, int64_t) { return true; }, portable_int8::quantise,
                                   portable_int8::widen, portable_int8::run_as<Word>};
}  // namespace hscc::cpu
