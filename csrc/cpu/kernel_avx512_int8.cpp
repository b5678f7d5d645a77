#if defined(__x86_64__)
#include <immintrin.h>

#include "kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif
#define HSCC_ISA avx512_int8

#include "avx512.h"
#include "int8_avx512.h"
#include "int8_kernel.h"
#include "quantise.h"

namespace hscc::cpu {
const Int8Kernels int8_avx512 = {avx512_int8::needs_words, avx512_int8::quantise, avx512_int8::widen,
                                 avx512_int8::convolve_int8};
}  // namespace hscc::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
