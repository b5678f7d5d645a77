// A thread's memory for a call: what the kernel keeps between its stages. Included once for every instruction set.
#pragma once

#include "patches.h"
#include "row_panels.h"
#include "second_stage.h"

namespace hscc::cpu::HSCC_ISA {

// Hands out cache-aligned pieces of one allocation; with a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

template <typename T>
struct Buffers {
  const T** pointers = nullptr;
  Segment *segments = nullptr, *inside = nullptr;
  Run* runs = nullptr;
  T *zeros = nullptr, *packed = nullptr, *y;
  float *z = nullptr, *panels = nullptr, *bias;
  typename SecondStage<T>::Z* packed_z = nullptr;
  int32_t* inverse;

  Buffers(Arena& arena, const PlanView& plan, int64_t max_rows, int64_t max_panels) {
    if (max_rows > 0) {  // without rows no patch is read, and nothing bounds the size of one
      const int64_t taps = plan.geometry.kernel_h * plan.geometry.kernel_w;
      pointers = arena.take<const T*>(kMaxBlocks * taps * kSlots);
      segments = arena.take<Segment>(kMaxBlocks * taps);
      inside = arena.take<Segment>(taps);
      runs = arena.take<Run>(plan.geometry.kernel_w);
      zeros = arena.take<T>(plan.geometry.kernel_w * plan.in_channels);
      z = arena.take<float>(kTile * padded(max_rows));
      if (SecondStage<T>::kPacks) packed_z = arena.take<typename SecondStage<T>::Z>(kTile * padded(max_rows));
      panels = arena.take<float>(max_panels);
      if (packs(plan)) packed = arena.take<T>(kPositions * packed_length(plan));
    }
    y = arena.take<T>(kTile * plan.out_channels);
    bias = arena.take<float>(plan.out_channels);
    inverse = arena.take<int32_t>(plan.out_channels);
  }
};

}  // namespace hscc::cpu::HSCC_ISA
