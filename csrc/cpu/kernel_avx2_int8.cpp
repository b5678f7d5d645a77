#if defined(__x86_64__)
#include <immintrin.h>

#include "kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define HSCC_ISA avx2_int8

#include "avx2.h"
#include "int8_avx2.h"
#include "int8_kernel.h"
#include "quantise.h"

namespace hscc::cpu {
const Int8Kernels int8_avx2 = {avx2_int8::needs_words, avx2_int8::quantise, avx2_int8::widen, avx2_int8::convolve_int8};
}  // namespace hscc::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
