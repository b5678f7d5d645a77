#define HSCC_ISA portable

#include "portable.h"
#include "product.h"
#include "region_kernel.h"

namespace hscc::cpu {
const Kernels kernels_portable = {portable::convolve, portable::multiply, portable::add_planes};
}  // namespace hscc::cpu
