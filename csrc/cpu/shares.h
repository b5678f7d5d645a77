// A call in parallel.
#pragma once

#include "kernel.h"

namespace hscc::cpu {

// One parallel region over shares of equal cost, as many as there are threads.
void run_shares(const PlanView& plan, void (*convolve)(const PlanView&, const Span*, int64_t span_count));

}  // namespace hscc::cpu
