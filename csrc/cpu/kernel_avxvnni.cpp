#if defined(__x86_64__)
#include <immintrin.h>

#include "kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,avxvnni,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,avxvnni,fma")
#endif
#define HSCC_ISA avxvnni
#define HSCC_VNNI

#include "avx2.h"
#include "int8_avx2.h"
#include "quantise.h"
#include "region_kernel.h"

namespace hscc::cpu {
const Int8Kernels int8_avxvnni = {[](const int8_t*, int64_t) { return false; }, avxvnni::quantise, avxvnni::widen,
                                  avxvnni::run_as<Byte>};
}  // namespace hscc::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
