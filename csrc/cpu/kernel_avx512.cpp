#if defined(__x86_64__)
#include <immintrin.h>

#include "kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif
#define HSCC_ISA avx512

#include "avx512.h"
#include "product.h"
#include "region_kernel.h"

namespace hscc::cpu {
const Kernels kernels_avx512 = {avx512::convolve, avx512::multiply, avx512::add_planes};
}  // namespace hscc::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
