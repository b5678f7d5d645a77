#include "isa.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <string_view>

namespace hscc::cpu {
namespace {

bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avxvnni:
      return supported(Isa::avx2) && __builtin_cpu_supports("avxvnni");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case Isa::avx512vnni:
      return supported(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512bf16:  // all that have it have VNNI
      return supported(Isa::avx512vnni) && __builtin_cpu_supports("avx512bf16");
  }
#endif
  return isa == Isa::portable;
}

Isa choose() {
  constexpr Isa preference[] = {Isa::avx512bf16, Isa::avx512vnni, Isa::avx512, Isa::avxvnni, Isa::avx2, Isa::portable};
  const char* wanted = std::getenv("HSCC_CPU_ISA");
  for (Isa isa : preference) {
    if (wanted == nullptr || *wanted == '\0') {
      if (supported(isa)) return isa;
    } else if (std::string_view(wanted) == isa_name(isa)) {
      STD_TORCH_CHECK(supported(isa), "HSCC_CPU_ISA: got ", wanted, ", which this machine does not support");
      return isa;
    }
  }
  STD_TORCH_CHECK(false, "HSCC_CPU_ISA: got ", wanted,
                  ", expected avx512bf16, avx512vnni, avx512, avxvnni, avx2 or portable");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return "portable";
    case Isa::avx2:
      return "avx2";
    case Isa::avxvnni:
      return "avxvnni";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512vnni:
      return "avx512vnni";
    case Isa::avx512bf16:
      return "avx512bf16";
  }
  return "unknown";
}

Isa chosen_isa() {
  static const Isa isa = choose();
  return isa;
}

bool prefetch_rows() {
#if defined(__x86_64__)
  return !__builtin_cpu_is("amd") || __builtin_cpu_is("amdfam19h");
#else
  return true;
#endif
}

const Kernels& chosen_kernels() {
#if defined(__x86_64__)
  switch (chosen_isa()) {
    case Isa::avx512bf16:
      return kernels_avx512bf16;
    case Isa::avx512vnni:
    case Isa::avx512:
      return kernels_avx512;
    case Isa::avxvnni:
    case Isa::avx2:
      return kernels_avx2;
    case Isa::portable:
      return kernels_portable;
  }
#endif
  return kernels_portable;
}

const Int8Kernels& chosen_int8_kernels() {
#if defined(__x86_64__)
  switch (chosen_isa()) {
    case Isa::avx512bf16:
    case Isa::avx512vnni:
      return int8_avx512vnni;
    case Isa::avx512:
      return int8_avx512;
    case Isa::avxvnni:
      return int8_avxvnni;
    case Isa::avx2:
      return int8_avx2;
    case Isa::portable:
      return int8_portable;
  }
#endif
  return int8_portable;
}

}  // namespace hscc::cpu
