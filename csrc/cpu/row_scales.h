// From sums of products of integers to Z. Included once for every instruction set.
#pragma once

#include "operand.h"
#include "row_panels.h"

namespace hscc::cpu::HSCC_ISA {

// What a sum with each row of an item counts, and what is added to it before, as inputs of Byte have their zero point
// in them: once a row for panels, where rows follow each other, else once a position, of whole blocks and of those with
// a position less, as nearly all are.
template <typename T>
class RowScales {
 public:
  RowScales(const PlanView& plan, float* const* scales, float* const* offsets)
      : plan_(plan), scales_{scales[0], scales[1]}, offsets_{offsets[0], offsets[1]} {}

  void take(const int32_t* rows, int64_t count, bool in_panels) {
    const Quantisation& q = plan_.quantisation;
    in_panels_ = in_panels, count_ = count;
    for (int64_t r = 0; r < padded(count); ++r) {
      const bool there = r < count;
      const float scale = there ? q.scale * q.row_scales[rows[r]] : 0;
      const int32_t sum = there && !kWidens<T> && q.zero_point != 0 ? -q.zero_point * sum_of(rows[r]) : 0;
      float offset;
      std::memcpy(&offset, &sum, sizeof offset);
      for (int less = 0; less < 2; ++less) {
        const int64_t copies = in_panels ? 1 : kPositions - less;
        for (int64_t i = r * copies; i < (r + 1) * copies; ++i) scales_[less][i] = scale, offsets_[less][i] = offset;
      }
    }
  }

  // z of a block, (positions, padded rows) from panels, else (rows, positions).
  void apply(float* z, int positions) const {
    const int less = in_panels_ || positions == kPositions ? 0 : 1;
    if (in_panels_) {
      for (int m = 0; m < positions; ++m, z += padded(count_)) apply(z, 0, padded(count_), less);
    } else if (positions + 1 >= kPositions) {
      apply(z, 0, count_ * positions, less);
    } else {
      for (int64_t r = 0; r < count_; ++r) apply(z + r * positions, r * (kPositions - 1), positions, less);
    }
  }

 private:
  int32_t sum_of(int64_t row) const {
    const int8_t* v = static_cast<const int8_t*>(plan_.v) + row * plan_.patch;
    int32_t sum = 0;
    for (int64_t k = 0; k < plan_.patch; ++k) sum += v[k];
    return sum;
  }

  // To ``count`` sums, whose scales are from ``first`` on.
  [[gnu::always_inline]] void apply(float* z, int64_t first, int64_t count, int less) const {
    const float *scales = scales_[less] + first, *offsets = offsets_[less] + first;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      store(z + i, Operand<T>::scale(load(z + i), load(offsets + i), load(scales + i)));
    }
    if (const int64_t n = count - i; n > 0) {
      store(z + i, Operand<T>::scale(load(z + i, n), load(offsets + i, n), load(scales + i, n)), n);
    }
  }

  const PlanView& plan_;
  float *scales_[2], *offsets_[2];
  int64_t count_ = 0;
  bool in_panels_ = false;
};

// Rows by number, int8, to 16 bits.
inline void widen_rows(const int8_t* v, const int32_t* rows, int64_t count, int64_t patch, Word* to) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t k = 0; k < patch; ++k) to[r * patch + k].value = v[rows[r] * patch + k];
  }
}

}  // namespace hscc::cpu::HSCC_ISA
