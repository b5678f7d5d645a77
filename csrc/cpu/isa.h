// Choice of the instruction set at run time.
#pragma once

#include "kernel.h"

namespace hscc::cpu {

enum class Isa { portable, avx2, avxvnni, avx512, avx512vnni, avx512bf16 };

const char* isa_name(Isa isa);

// The best one of this machine, or the one HSCC_CPU_ISA names; raises when the machine lacks that one.
Isa chosen_isa();
const Kernels& chosen_kernels();
const Int8Kernels& chosen_int8_kernels();

}  // namespace hscc::cpu
