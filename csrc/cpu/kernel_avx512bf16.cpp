#if defined(__x86_64__)
#include <immintrin.h>

#include "kernel.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#endif
#define HSCC_ISA avx512bf16

#include "avx512.h"
#include "bfloat16_pairs.h"
#include "region_kernel.h"

namespace hscc::cpu {
namespace {

// Float32 is computed as by AVX-512 without bfloat16, bit by bit.
void convolve(const PlanView& plan, const Span* spans, int64_t span_count) {
  (plan.bfloat16 ? avx512bf16::run_as<BFloat16> : kernels_avx512.convolve)(plan, spans, span_count);
}
void multiply(const Product& product, int64_t begin, int64_t end) {
  kernels_avx512.multiply(product, begin, end);
}
void add_planes(const Planes& planes, int64_t begin, int64_t end) {
  kernels_avx512.add_planes(planes, begin, end);
}

}  // namespace

const Kernels kernels_avx512bf16 = {convolve, multiply, add_planes};
}  // namespace hscc::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
