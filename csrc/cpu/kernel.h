// What the baseline code and the kernels compiled for each instruction set share: plain data only, because a function
// defined in both could be merged by the linker into the version that this machine cannot run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan_view.h"

namespace hscc::cpu {

// Some (image, position) pairs of one region: those numbered [begin, end), image after image.
struct Span {
  const WorkItem* item;
  int64_t begin, end;
};

// Cache-aligned memory of the calling thread, valid until its next call.
void* thread_scratch(size_t bytes);

using Kernel = void (*)(const PlanView&, const Span*, int64_t span_count);
void run_portable(const PlanView& plan, const Span* spans, int64_t span_count);
void run_avx2(const PlanView& plan, const Span* spans, int64_t span_count);
void run_avx512(const PlanView& plan, const Span* spans, int64_t span_count);

}  // namespace hscc::cpu
