// Patches of x by pointer: no im2col. Included once for every instruction set.
//
// In NHWC one kernel row of a patch is a contiguous run of kernel_w * channels numbers, so blocks of patches that lie
// inside the image all share one list of segments and differ in a pointer a patch. At the border a block has its own
// list, tap by tap, with a pointer to zeros for each tap outside; taps outside for all its patches are left out.
#pragma once

#include "kernel.h"

namespace hscc::cpu::HSCC_ISA {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

constexpr int kTile = 48;                         // positions whose Z stays in cache between the stages
constexpr int kSlots = (kPositions + 7) / 8 * 8;  // positions of a block, padded so that loops over them vectorise

// Patch elements [v_offset, v_offset + length); in memory they start x_offset after the segment's pointers.
struct Segment {
  int64_t v_offset, length, x_offset;
};

// Segments in the order of the patch; those of chunks 0..c end at chunk_end[c].
struct SegmentList {
  Segment* segments;
  int32_t* chunk_end;
};

// Positions [first, first + positions) of a tile. Segment i finds its pointers, one a patch, at pointers + i * step.
struct Block {
  int first, positions;
  SegmentList list;
  const float* const* pointers;
  int64_t step;
};

// Corners of a tile's patches: image row and column, and the offset in x that they have, or would have if not inside.
struct Corners {
  int64_t top[kTile + kSlots], left[kTile + kSlots], offset[kTile + kSlots];
  const float* inside[kTile + kSlots];  // where the patch starts, null where it crosses the border
};

// Cuts patches into chunks of ``chunk`` elements, so that operands stay in cache while all rows and positions pass.
class PatchBuilder {
 public:
  PatchBuilder(const PlanView& plan, int64_t chunk, const float* zeros, SegmentList inside)
      : plan_(plan),
        g_(plan.geometry),
        chunk_(chunk),
        chunks_(ceil_div(plan.patch, chunk)),
        zeros_(zeros),
        inside_(inside),
        columns_(1.0 / double(plan.out_width)) {
    row_step_ = plan.width * plan.in_channels;
    image_step_ = plan.height * row_step_;
    if (inside.segments == nullptr) return;  // no rows, so no patch is ever read
    const bool runs = g_.dilation_w == 1;    // a kernel row is one run
    const int64_t pieces = runs ? 1 : g_.kernel_w, length = plan.patch / (g_.kernel_h * pieces);
    for (int64_t i = 0; i < g_.kernel_h; ++i) {
      for (int64_t j = 0; j < pieces; ++j) {
        const int64_t x_offset = i * g_.dilation_h * row_step_ + j * g_.dilation_w * plan.in_channels;
        emit(inside_, (i * pieces + j) * length, length, x_offset);
      }
    }
    finish(inside_);
  }

  int64_t chunks() const { return chunks_; }

  // Corners of some output positions of one image.
  void locate(int64_t image, const int32_t* positions, int64_t count, Corners& corners, int64_t slot) const {
    const int64_t last_top = plan_.height - (g_.kernel_h - 1) * g_.dilation_h;
    const int64_t last_left = plan_.width - (g_.kernel_w - 1) * g_.dilation_w;
    const int64_t stride_h = g_.stride_h, stride_w = g_.stride_w, pad_h = g_.pad_h, pad_w = g_.pad_w;
    const int64_t out_width = plan_.out_width, in_channels = plan_.in_channels, row_step = row_step_;
    const int64_t image_offset = image * image_step_;
    const float* x = plan_.x;
    const double columns = columns_;
    for (int64_t m = 0; m < count; ++m) {
      const int64_t row = int64_t((double(positions[m]) + 0.5) * columns), column = positions[m] - row * out_width;
      const int64_t top = row * stride_h - pad_h, left = column * stride_w - pad_w;
      const int64_t offset = image_offset + top * row_step + left * in_channels;
      const bool inside = (top >= 0) & (top < last_top) & (left >= 0) & (left < last_left);
      corners.top[slot + m] = top;
      corners.left[slot + m] = left;
      corners.offset[slot + m] = offset;
      corners.inside[slot + m] = inside ? x + offset : nullptr;
    }
  }

  // ``own`` and ``pointers`` are memory for as many segments as a border block can have.
  void build(Block& block, const Corners& corners, const SegmentList& own, const float** pointers) {
    bool inside = true;
    for (int m = 0; m < block.positions; ++m) inside &= corners.inside[block.first + m] != nullptr;
    block.list = inside ? inside_ : own;
    block.pointers = inside ? corners.inside + block.first : pointers;
    block.step = inside ? 0 : kSlots;
    if (inside) return;
    for (int64_t i = 0; i < g_.kernel_h; ++i) {
      for (int64_t j = 0; j < g_.kernel_w; ++j) add_tap(block, corners, pointers, i, j);
    }
    finish(block.list);
  }

 private:
  void add_tap(Block& block, const Corners& corners, const float** pointers, int64_t i, int64_t j) {
    const int64_t down = i * g_.dilation_h, right = j * g_.dilation_w;
    const int64_t shift = down * row_step_ + right * plan_.in_channels;
    const uint64_t height = uint64_t(plan_.height), width = uint64_t(plan_.width);
    const int64_t *top = corners.top + block.first, *left = corners.left + block.first;
    const int64_t* offset = corners.offset + block.first;
    const float *x = plan_.x, *zeros = zeros_;
    const float** p = pointers + count_ * kSlots;
    int64_t any = 0;
    for (int m = 0; m < kSlots; ++m) {
      const bool valid =
          (uint64_t(top[m] + down) < height) & (uint64_t(left[m] + right) < width) & (m < block.positions);
      p[m] = valid ? x + (offset[m] + shift) : zeros;
      any |= valid;
    }
    if (!any) return;
    const int32_t first = count_;
    emit(block.list, (i * g_.kernel_w + j) * plan_.in_channels, plan_.in_channels, 0);
    for (int32_t s = first + 1; s < count_; ++s) {
      for (int m = 0; m < kSlots; ++m) pointers[s * kSlots + m] = p[m];
    }
  }

  void emit(SegmentList& list, int64_t v_offset, int64_t length, int64_t x_offset) {
    for (int64_t done = 0; done < length;) {
      while (v_offset + done >= (at_chunk_ + 1) * chunk_) list.chunk_end[at_chunk_++] = count_;
      const int64_t n = smaller(length - done, (at_chunk_ + 1) * chunk_ - v_offset - done);
      list.segments[count_++] = {v_offset + done, n, x_offset + done};
      done += n;
    }
  }

  void finish(SegmentList& list) {
    while (at_chunk_ < chunks_) list.chunk_end[at_chunk_++] = count_;
    at_chunk_ = 0;
    count_ = 0;
  }

  const PlanView& plan_;
  const Geometry& g_;
  const int64_t chunk_, chunks_;
  const float* zeros_;
  SegmentList inside_;
  const double columns_;  // 1 / out_width: a product in double gives a position's row exactly
  int64_t row_step_, image_step_;
  int64_t at_chunk_ = 0;  // of the list being built, as is count_
  int32_t count_ = 0;
};

}  // namespace hscc::cpu::HSCC_ISA
