#if defined(__x86_64__)
#include <immintrin.h>

#include "kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define HSCC_ISA avx2

#include "avx2.h"
#include "product.h"
#include "region_kernel.h"

namespace hscc::cpu {
const Kernels kernels_avx2 = {avx2::convolve, avx2::multiply, avx2::add_planes};
}  // namespace hscc::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
