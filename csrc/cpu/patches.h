// Patches of x by pointer: no im2col. Included once for every instruction set.
//
// In NHWC one kernel row of a patch is a contiguous run of kernel_w * channels numbers, so blocks of patches that lie
// inside the image all share one list of segments and differ in a pointer a patch. At the border a block has its own
// list of runs of taps, with a pointer to zeros where a run is outside; runs outside for all patches are left out.
// Such a block has its patches in an order in which the first few are all that a run needs to be computed for.
// Runs too short for the vectors, as those of a first layer, are copied together: one segment, the whole patch.
#pragma once

#include "corners.h"

namespace hscc::cpu::HSCC_ISA {

constexpr int64_t kShortRun = 5 * kLanes;  // kernel rows of fewer numbers are copied together,
constexpr int64_t kMostPacked = 1024;      // unless a block of such patches would not stay in the L1
constexpr int64_t kLongRun = 16 * kLanes;  // from here on it pays to leave out single patches' zeros

// Patch elements [v_offset, v_offset + length); in memory they start x_offset after the segment's pointers. They are
// zeros for all patches of a block but the first ``valid``.
struct Segment {
  int64_t v_offset, length, x_offset, valid;
};

// Positions [first, first + positions) of a tile. Segment i finds its pointers, one a patch, at pointers + i * step.
template <typename T>
struct Block {
  int first, positions;
  const Segment* segments;
  int64_t segment_count;
  const T* const* pointers;
  int64_t step;
  bool counted;  // whether segments are shorter than the block, by ``valid``; if not, pointers to zeros fill them
};

// Neighbouring taps of a kernel row, inside the image's columns for the same positions of a block, those in ``valid``.
struct Run {
  int64_t v_offset, length, x_offset;  // from the start of the kernel row
  uint32_t valid;
};

template <typename T>
inline void copy(T* to, const T* from, auto... count) {
  if constexpr (!kQuantised<T>) {
    store(to, load(from, count...), count...);
  } else if constexpr (sizeof...(count) == 0) {
    __builtin_memcpy(to, from, kLanes * sizeof(T));
  } else {
    for (int64_t i = 0; i < (count, ...); ++i) to[i] = from[i];
  }
}

template <typename T>
[[gnu::always_inline]] inline void copy_run(T* to, const T* from, int64_t run) {
  for (int64_t k = 0; k < run; k += kLanes) copy(to + k, from + k, smaller(run - k, kLanes));
}

// Copies ``count`` runs of N vectors, the last one not full, to follow each other.
template <typename T, int N>
[[gnu::always_inline]] inline void copy_rows(T* to, const T* from, int64_t run, int64_t step, int64_t count) {
  const int64_t last = run - (N - 1) * kLanes;
  for (int64_t i = 0; i < count; ++i, to += run, from += step) {
#pragma GCC unroll 4
    for (int n = 0; n < N - 1; ++n) copy(to + n * kLanes, from + n * kLanes);
    copy(to + (N - 1) * kLanes, from + (N - 1) * kLanes, last);
  }
}

inline int64_t packed_length(const PlanView& plan) {
  return (ceil_div(plan.patch, kLanes) + 1) * kLanes;
}
inline bool packs(const PlanView& plan) {
  const Geometry& g = plan.geometry;
  return g.kernel_h > 1 && g.dilation_w == 1 && g.kernel_w * plan.in_channels < kShortRun && plan.patch <= kMostPacked;
}

template <typename T>
class PatchBuilder {
  using Out = typename Beside<T>::Type;

 public:
  // Memory for ``taps`` segments and ``kernel_w`` runs; without rows none, as no patch is ever read. ``zeros`` are what
  // stands for 0 in x.
  PatchBuilder(const PlanView& plan, const T* zeros, Segment* inside, Run* runs)
      : plan_(plan),
        x_(static_cast<const T*>(plan.x)),
        g_(plan.geometry),
        zeros_(zeros),
        whole_{0, plan.patch, 0, kPositions},
        inside_(inside),
        runs_(runs),
        leaves_out_(!kQuantised<T> || kWidens<T> || plan.quantisation.zero_point == 0),
        locator_(plan) {
    row_step_ = plan.width * plan.in_channels;
    if (inside == nullptr) return;
    const int64_t pieces = g_.dilation_w == 1 ? 1 : g_.kernel_w;  // without dilation a kernel row is one run
    const int64_t length = plan.patch / (g_.kernel_h * pieces);
    for (int64_t i = 0; i < g_.kernel_h; ++i) {
      for (int64_t j = 0; j < pieces; ++j) {
        const int64_t x_offset = i * g_.dilation_h * row_step_ + j * g_.dilation_w * plan.in_channels;
        inside_[inside_count_] = {inside_count_ * length, length, x_offset, kPositions};
        ++inside_count_;
      }
    }
  }

  // Corners of some output positions of one image.
  void locate(int64_t image, const int32_t* positions, int64_t count, Corners<T>& corners, int64_t slot) const {
    locator_.locate(image, positions, count, corners, slot);
  }

  // Where input row ``row`` of a patch starts, counted from its last, or the nearest place inside the image.
  const T* row_from_below(int64_t image, int32_t position, int64_t row) const {
    const int64_t out_row = locator_.row_of(position);
    const int64_t column = position - out_row * plan_.out_width;
    const int64_t y = out_row * g_.stride_h - g_.pad_h + (g_.kernel_h - 1) * g_.dilation_h - row;
    const int64_t x = column * g_.stride_w - g_.pad_w;
    return x_ + (image * plan_.height + larger(smaller(y, plan_.height - 1), 0)) * row_step_ +
           larger(smaller(x, plan_.width - 1), 0) * plan_.in_channels;
  }

  // Copies the patches of a block together: ``packed_length`` numbers a position, the last of them of no meaning. By
  // the N vectors of a kernel row, chosen once a block: a call for each patch would take as long as a short one.
  template <int N = kShortRun / kLanes>
  void pack(Block<T>& block, const Corners<T>& corners, T* to, const T** pointers) const {
    const int64_t channels = plan_.in_channels, length = packed_length(plan_), run = g_.kernel_w * channels;
    if constexpr (N > 1) {
      if (run <= (N - 1) * kLanes) return pack<N - 1>(block, corners, to, pointers);
    }
    for (int m = 0; m < block.positions; ++m, to += length) {
      const int64_t slot = block.first + m, left = corners.left[slot];
      const int64_t begin = smaller(larger(-left, 0), g_.kernel_w) * channels;
      const int64_t end = larger(begin, smaller(g_.kernel_w, plan_.width - left) * channels);
      pointers[m] = to;
      if (const T* inside = corners.inside[slot]) {
        copy_rows<T, N>(to, inside, run, g_.dilation_h * row_step_, g_.kernel_h);
        continue;
      }
      for (int64_t i = 0; i < g_.kernel_h; ++i) {
        T* p = to + i * run;
        const int64_t shift = i * g_.dilation_h;
        if (uint64_t(corners.top[slot] + shift) >= uint64_t(plan_.height)) {
          fill(p, run);
          continue;
        }
        fill(p, begin);
        copy_run(p + begin, x_ + (corners.offset[slot] + shift * row_step_ + begin), end - begin);
        fill(p + end, run - end);
      }
    }
    block.segments = &whole_;
    block.segment_count = 1;
    block.pointers = pointers;
    block.step = 0;
    block.counted = false;
  }

  // ``own`` and ``pointers`` are memory for a border block: as many segments as the kernel has taps. Its patches may
  // change places, and their outputs with them.
  void build(Block<T>& block, Corners<T>& corners, Out** out, Segment* own, const T** pointers) {
    const uint32_t all = (1u << block.positions) - 1;
    const bool inside = (locator_.inside_mask(corners, block.first) & all) == all;
    block.counted = leaves_out_ && !inside && g_.kernel_w * plan_.in_channels >= kLongRun;
    if (inside) {
      block.segments = inside_;
      block.segment_count = inside_count_;
      block.pointers = corners.inside + block.first;
      block.step = 0;
    } else {
      if (block.counted) sort(block, corners, out);
      block.segments = own;
      block.segment_count = build_border(block, corners, own, pointers);
      block.pointers = pointers;
      block.step = kSlots;
    }
  }

 private:
  [[gnu::always_inline]] void fill(T* to, int64_t n) const {
    if constexpr (kQuantised<T>) {
      copy_run(to, zeros_, n);
    } else {
      for (int64_t k = 0; k < n; k += kLanes) store(to + k, zero(), smaller(n - k, kLanes));
    }
  }

  // Those patches last that hang over the border most, so that what they have outside the image is left out by count.
  void sort(const Block<T>& block, Corners<T>& corners, Out** out) const {
    const int64_t extent_h = (g_.kernel_h - 1) * g_.dilation_h + 1, extent_w = (g_.kernel_w - 1) * g_.dilation_w + 1;
    int32_t *top = corners.top + block.first, *left = corners.left + block.first;
    int64_t over[kSlots];
    for (int m = 0; m < kSlots; ++m) {
      const int64_t rows = larger(-int64_t(top[m]), 0) + larger(top[m] + extent_h - plan_.height, 0);
      const int64_t columns = larger(-int64_t(left[m]), 0) + larger(left[m] + extent_w - plan_.width, 0);
      over[m] = 2 * rows + columns;  // not their sum: sides of a kind stay together
    }
    for (int m = 1; m < block.positions; ++m) {
      for (int i = m; i > 0 && over[i] < over[i - 1]; --i) {
        const int64_t slot = block.first + i;
        swap(over[i], over[i - 1]);
        swap(top[i], top[i - 1]);
        swap(left[i], left[i - 1]);
        swap(corners.offset[slot], corners.offset[slot - 1]);
        swap(out[slot], out[slot - 1]);
      }
    }
  }

  int64_t build_border(const Block<T>& block, const Corners<T>& corners, Segment* segments, const T** pointers) {
    const int32_t *top = corners.top + block.first, *left = corners.left + block.first;
    const uint32_t all = (1u << block.positions) - 1;
    const int64_t channels = plan_.in_channels, tap = g_.dilation_w * channels, row = g_.dilation_h * row_step_;
    Run* end = runs_;
    for (int64_t j = 0; j < g_.kernel_w; ++j) {
      const uint32_t valid = all & below(left, int32_t(j * g_.dilation_w), int32_t(plan_.width));
      if (end != runs_ && end[-1].valid == valid && g_.dilation_w == 1) {
        end[-1].length += channels;
      } else {
        *end++ = {j * channels, channels, j * tap, valid};
      }
    }
    int64_t count = 0, v_offset = 0, x_offset = 0;
    for (int64_t i = 0; i < g_.kernel_h; ++i, v_offset += g_.kernel_w * channels, x_offset += row) {
      const uint32_t row_valid = all & below(top, int32_t(i * g_.dilation_h), int32_t(plan_.height));
      for (const Run* run = runs_; run != end; ++run) {
        const uint32_t valid = row_valid & run->valid;
        if (valid == 0 && leaves_out_) continue;
        segments[count] = {v_offset + run->v_offset, run->length, 0, 32 - __builtin_clz(valid | 1)};
        point(corners.offset + block.first, x_offset + run->x_offset, valid, pointers + count * kSlots);
        ++count;
      }
    }
    return count;
  }

  void point(const int64_t* offset, int64_t shift, uint64_t valid, const T** pointers) const {
    const T *x = x_ + shift, *zeros = zeros_;
#pragma GCC unroll 1
    for (uint64_t m = 0; m < kSlots; ++m) pointers[m] = (valid >> m) & 1 ? x + offset[m] : zeros;
  }

  const PlanView& plan_;
  const T* x_;
  const Geometry& g_;
  const T* zeros_;  // as many as a kernel row has
  const Segment whole_;
  Segment* inside_;  // those of every patch inside the image
  Run* runs_;
  const bool leaves_out_;  // zeros, as they are 0 in x, too
  const Locator<T> locator_;
  int64_t row_step_, inside_count_ = 0;
};

}  // namespace hscc::cpu::HSCC_ISA
