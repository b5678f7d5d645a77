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

// Numbers in maps, in and out, from which on they come from memory, whoever wrote them, and go there.
constexpr int64_t kCached = 1 << 21;

// Cache-aligned memory of the calling thread, valid until its next call.
void* thread_scratch(size_t bytes);

// Whether to prefetch rows of V in software: measured, an Ice Lake and a Zen 4 gain by it, a Zen 5 loses.
bool prefetch_rows();

// Pixels (pixels, in_channels) times a matrix (in_channels, out_channels), all of them rows without gaps.
struct Product {
  int64_t pixels, in_channels, out_channels;
  const float* x;
  const float* matrix;
  float* out;
};

// The same for images with a plane a channel, (in_channels, pixels) each, and one channel out.
struct Planes {
  int64_t pixels, in_channels;
  const float* x;
  const float* weights;
  float* out;
};

// What one instruction set has: the convolution of some spans, and pixels [begin, end) of a product or of planes.
struct Kernels {
  void (*convolve)(const PlanView&, const Span*, int64_t span_count);
  void (*multiply)(const Product&, int64_t begin, int64_t end);
  void (*add_planes)(const Planes&, int64_t begin, int64_t end);
};
extern const Kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_avx512bf16;

// The same of an int8 call, which multiplies Byte where no number of V is too large for that, else Word.
struct Int8Kernels {
  bool (*needs_words)(const int8_t* v, int64_t count);
  void (*quantise)(const Quantisation&, const float* x, void* to, int64_t begin, int64_t end);
  void (*widen)(const Quantisation&, const uint8_t* x, void* to, int64_t begin, int64_t end);
  void (*convolve)(const PlanView&, const Span*, int64_t span_count);
};
extern const Int8Kernels int8_portable, int8_avx2, int8_avxvnni, int8_avx512, int8_avx512vnni;

}  // namespace hscc::cpu
