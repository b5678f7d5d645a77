// Patches of x by pointer: no im2col. Included once for every instruction set.
//
// In NHWC one kernel row of a patch is a contiguous run of kernel_w * channels numbers, so a patch that lies inside the
// image needs kernel_h pointers. At the border a patch falls apart into taps, those outside pointing to zeros.
#pragma once

#include "kernel.h"

namespace hscc::cpu::HSCC_ISA {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Patch elements [v_offset, v_offset + length), contiguous in memory for every position of a block.
struct Segment {
  int64_t v_offset, length;
};

// An output position: its image and the patch's corner in it.
struct Window {
  const float* image;
  int64_t top, left;
  bool inside;
};

// The patches of up to kPositions positions as segments; ``chunk_end[c]`` counts the segments of chunks 0..c.
struct Block {
  int first, positions;
  Segment* segments;
  const float** pointers;  // kPositions a segment
  int32_t* chunk_end;
};

// Splits patches into chunks of ``chunk`` elements, so that operands stay in cache while all rows and positions pass.
class PatchBuilder {
public:
  PatchBuilder(const PlanView& plan, int64_t chunk, const float* zeros)
      : plan_(plan), g_(plan.geometry), chunk_(chunk), chunks_(ceil_div(plan.patch, chunk)), zeros_(zeros) {}

  int64_t chunks() const { return chunks_; }
  int64_t max_segments() const { return g_.kernel_h * g_.kernel_w + chunks_; }

  Window window(int64_t image, int32_t position) {
    if (position < row_start_ || position >= row_start_ + plan_.out_width) {
      row_ = position / plan_.out_width;
      row_start_ = row_ * plan_.out_width;
    }
    const int64_t top = row_ * g_.stride_h - g_.pad_h;
    const int64_t left = (position - row_start_) * g_.stride_w - g_.pad_w;
    const bool inside = top >= 0 && top + (g_.kernel_h - 1) * g_.dilation_h < plan_.height && left >= 0 &&
                        left + (g_.kernel_w - 1) * g_.dilation_w < plan_.width;
    return {plan_.x + image * plan_.height * plan_.width * plan_.in_channels, top, left, inside};
  }

  void build(Block& block, const Window* windows) {
    count_ = 0;
    at_chunk_ = 0;
    bool inside = g_.dilation_w == 1;
    for (int m = 0; m < block.positions; ++m) inside &= windows[m].inside;
    for (int64_t i = 0; i < g_.kernel_h; ++i) {
      if (inside) {
        add_row(block, windows, i);
      } else {
        for (int64_t j = 0; j < g_.kernel_w; ++j) add_tap(block, windows, i, j);
      }
    }
    while (at_chunk_ < chunks_) block.chunk_end[at_chunk_++] = count_;
  }

private:
  const float* pixel(const Window& w, int64_t h, int64_t column) const {
    return w.image + (h * plan_.width + column) * plan_.in_channels;
  }

  void add_row(Block& block, const Window* windows, int64_t i) {
    const float* p[kPositions];
    for (int m = 0; m < block.positions; ++m)
      p[m] = pixel(windows[m], windows[m].top + i * g_.dilation_h, windows[m].left);
    const int64_t length = g_.kernel_w * plan_.in_channels;
    emit(block, p, i * length, length);
  }

  void add_tap(Block& block, const Window* windows, int64_t i, int64_t j) {
    const float* p[kPositions];
    bool any = false;
    for (int m = 0; m < block.positions; ++m) {
      const int64_t h = windows[m].top + i * g_.dilation_h, column = windows[m].left + j * g_.dilation_w;
      const bool valid = h >= 0 && h < plan_.height && column >= 0 && column < plan_.width;
      p[m] = valid ? pixel(windows[m], h, column) : zeros_;
      any |= valid;
    }
    if (any) emit(block, p, (i * g_.kernel_w + j) * plan_.in_channels, plan_.in_channels);
  }

  void emit(Block& block, const float* const* p, int64_t v_offset, int64_t length) {
    for (int64_t done = 0; done < length;) {
      while (v_offset + done >= (at_chunk_ + 1) * chunk_) block.chunk_end[at_chunk_++] = count_;
      const int64_t n = smaller(length - done, (at_chunk_ + 1) * chunk_ - v_offset - done);
      block.segments[count_] = {v_offset + done, n};
      for (int m = 0; m < block.positions; ++m) block.pointers[count_ * kPositions + m] = p[m] + done;
      ++count_;
      done += n;
    }
  }

  const PlanView& plan_;
  const Geometry& g_;
  const int64_t chunk_, chunks_;
  const float* zeros_;
  int64_t row_ = 0, row_start_ = 0;  // of the last position
  int64_t at_chunk_ = 0;
  int32_t count_ = 0;
};

}  // namespace hscc::cpu::HSCC_ISA
