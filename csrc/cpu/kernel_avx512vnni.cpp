#if defined(__x86_64__)
#include <immintrin.h>

#include "kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#endif
#define HSCC_ISA avx512vnni
#define HSCC_VNNI

#include "avx512.h"
#include "int8_avx512.h"
#include "quantise.h"
#include "region_kernel.h"

namespace hscc::cpu {
const Int8Kernels int8_avx512vnni = {[](const int8_t*, int64_t) { return false; }, avx512vnni::quantise,
                                     avx512vnni::widen, avx512vnni::run_as<Byte>};
}  // namespace hscc::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
