// Where the patches of a tile start in x. Included once for every instruction set.
#pragma once

#include "tiles.h"

namespace hscc::cpu::HSCC_ISA {

// Image row and column of a patch's first tap, negative above and left of the image, and the offset in x that it has,
// or would have if not inside.
template <typename T>
struct Corners {
  int32_t top[kTile + kSlots], left[kTile + kSlots];
  int64_t offset[kTile + kSlots];
  const T* inside[kTile + kSlots];  // where the patch starts, null where it crosses the border
};

// What it takes to find them, in int32: images have under 2^30 rows and columns, and a row of one under 2^31 numbers.
template <typename T>
class Locator {
 public:
  explicit Locator(const PlanView& plan)
      : x_(static_cast<const T*>(plan.x)),
        stride_h_(int32_t(plan.geometry.stride_h)),
        stride_w_(int32_t(plan.geometry.stride_w)),
        pad_h_(int32_t(plan.geometry.pad_h)),
        pad_w_(int32_t(plan.geometry.pad_w)),
        last_top_(last(plan.height, plan.geometry.kernel_h, plan.geometry.dilation_h)),
        last_left_(last(plan.width, plan.geometry.kernel_w, plan.geometry.dilation_w)),
        out_width_(int32_t(plan.out_width)),
        channels_(int32_t(plan.in_channels)),
        row_step_(int32_t(plan.width * plan.in_channels)),
        image_step_(plan.height * row_step_),
        columns_(1.0 / double(plan.out_width)) {}

  // Some output positions of one image, from ``slot`` of the tile on.
  void locate(int64_t image, const int32_t* positions, int64_t count, Corners<T>& corners, int64_t slot) const {
    int32_t *tops = corners.top + slot, *lefts = corners.left + slot;
    int64_t* offsets = corners.offset + slot;
    const T** insides = corners.inside + slot;
    const Locator at = *this;  // nothing that is stored below changes it
    const int64_t image_offset = image * image_step_;
    for (int64_t m = 0; m < count; ++m) {
      const int32_t row = at.row_of(positions[m]), column = positions[m] - row * at.out_width_;
      const int32_t top = row * at.stride_h_ - at.pad_h_, left = column * at.stride_w_ - at.pad_w_;
      const int64_t offset = image_offset + int64_t(top) * at.row_step_ + int64_t(left) * at.channels_;
      const bool inside = (top >= 0) & (top < at.last_top_) & (left >= 0) & (left < at.last_left_);
      tops[m] = top;
      lefts[m] = left;
      offsets[m] = offset;
      insides[m] = inside ? at.x_ + offset : nullptr;
    }
  }

  // The row of the map that a position lies in: exact, as a product in double.
  int32_t row_of(int32_t position) const { return int32_t((double(position) + 0.5) * columns_); }

  // Bit m: whether ``inside`` of slot m of a block is not null, at once for all.
  uint32_t inside_mask(const Corners<T>& corners, int first) const {
    return below(corners.top + first, 0, last_top_) & below(corners.left + first, 0, last_left_);
  }

 private:
  // Where patches inside the image start is below this; 0 if the image is smaller than the kernel.
  static int32_t last(int64_t size, int64_t kernel, int64_t dilation) {
    return int32_t(larger(size - (kernel - 1) * dilation, 0));
  }

  const T* x_;
  int32_t stride_h_, stride_w_, pad_h_, pad_w_, last_top_, last_left_, out_width_, channels_, row_step_;
  int64_t image_step_;
  double columns_;
};

}  // namespace hscc::cpu::HSCC_ISA
