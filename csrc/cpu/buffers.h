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
  using Out = typename Beside<T>::Type;
  const T** pointers = nullptr;
  Segment *segments = nullptr, *inside = nullptr;
  Run* runs = nullptr;
  T *zeros = nullptr, *packed = nullptr, *rows = nullptr;
  Out* y;
  float *z = nullptr, *panels = nullptr, *bias, *scales[2] = {}, *offsets[2] = {};
  typename SecondStage<Out>::Z* packed_z = nullptr;
  int32_t *inverse, *order = nullptr;

  Buffers(Arena& arena, const PlanView& plan, int64_t max_rows, int64_t max_panels) {
    if (max_rows > 0) {  // without rows no patch is read, and nothing bounds the size of one
      const int64_t taps = plan.geometry.kernel_h * plan.geometry.kernel_w;
      pointers = arena.take<const T*>(kMaxBlocks * taps * kSlots);
      segments = arena.take<Segment>(kMaxBlocks * taps);
      inside = arena.take<Segment>(taps);
      runs = arena.take<Run>(plan.geometry.kernel_w);
      zeros = arena.take<T>(plan.geometry.kernel_w * plan.in_channels);
      z = arena.take<float>(kTile * padded(max_rows));
      if (SecondStage<Out>::kPacks) packed_z = arena.take<typename SecondStage<Out>::Z>(kTile * padded(max_rows));
      panels = arena.take<float>(max_panels);
      if (kQuantised<T>) {
        for (int i = 0; i < 2; ++i) {
          scales[i] = arena.take<float>(padded(max_rows) * kPositions);
          offsets[i] = arena.take<float>(padded(max_rows) * kPositions);
        }
      }
      if (kWidens<T>) {
        rows = arena.take<T>(max_rows * plan.patch);
        order = arena.take<int32_t>(max_rows);
      }
      if (packs(plan)) packed = arena.take<T>(kPositions * packed_length(plan));
    }
    y = arena.take<Out>(kTile * plan.out_channels);
    bias = arena.take<float>(plan.out_channels);
    inverse = arena.take<int32_t>(plan.out_channels);
  }
};

}  // namespace hscc::cpu::HSCC_ISA
