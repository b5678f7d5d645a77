// The kernel: walks tiles of positions of a region through both stages. Included once for every instruction set.
#pragma once

#include "block_kernels.h"
#include "buffers.h"
#include "row_scales.h"

namespace hscc::cpu::HSCC_ISA {

template <typename T>
class RegionKernel {
  using Out = typename Beside<T>::Type;

 public:
  RegionKernel(const PlanView& plan, const Buffers<T>& buffers, PatchBuilder<T>& patches)
      : plan_(plan),
        v_(static_cast<const T*>(plan.v)),
        u_(static_cast<const Out*>(plan.u)),
        b_(buffers),
        patches_(patches),
        scales_(plan, buffers.scales, buffers.offsets),
        whole_lines_(SecondStage<Out>::kChannels * sizeof(Out) == kLine &&
                     plan.out_channels % SecondStage<Out>::kChannels == 0 &&
                     reinterpret_cast<uintptr_t>(plan.out) % kLine == 0) {
    for (int64_t m = 0; m < kTile; ++m) in_order_[m] = b_.y + m * plan.out_channels;
  }

  // ``after`` is the span that this thread runs next, without pairs if there is none.
  void run(const Span& span, const Span& after) {
    enter(span);
    if (in_panels_ && prefetch_rows_ && after.item != nullptr) prefetch_all_rows(*after.item);
    const Parts tiles(ceil_div(span.end - span.begin, kPositions), kMaxBlocks);  // whole blocks but for the last
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t end = smaller(span.begin + tiles.begin(t + 1) * kPositions, span.end);
      next_ = end < span.end ? Span{span.item, end, span.end} : after;
      new_rows_ = end < span.end ? plan_.geometry.stride_h : plan_.geometry.kernel_h;
      run_tile(span.begin + tiles.begin(t) * kPositions, end);
    }
  }

 private:
  static constexpr bool kGathers = sizeof(Out) == sizeof(float);  // whether vectors put channels in order

  // Rows as the first stage wants them; bias in the clusters' order; whether each cluster's channels are neighbours,
  // and if not, where each channel is; whether outputs are streamed, or fetched under panels.
  void enter(const Span& span) {
    const WorkItem& item = *span.item;
    item_ = &item;
    in_panels_ = wants_panels<T>(plan_, item);
    copied_ = b_.packed != nullptr && (!in_panels_ || splits_lanes<T>(plan_));
    z_stride_ = padded(item.row_count);
    take_rows(item);
    if (in_panels_) {
      const Parts panels(z_stride_ / kLanes, kVectors);
      fill_panels(v_, rows_, item.row_count, plan_.patch, panels, b_.panels);
    }
    const int32_t* order = plan_.channels + item.region * plan_.out_channels;
    const Out* bias =
        plan_.bias ? static_cast<const Out*>(plan_.bias) + item.region * plan_.bias_region_stride : nullptr;
    int32_t moved = 0, broken = 0;
    for (int32_t k = 0; k < item.cluster_count; ++k) {
      const ClusterItem& c = plan_.clusters[item.cluster_start + k];
      const int32_t* channels = order + c.channel_start;
      for (int32_t i = 1; i < c.channel_count; ++i) moved |= channels[i] ^ (channels[0] + i);
      broken |= (c.channel_count > 0 ? channels[0] | c.channel_count : 0) % SecondStage<Out>::kChannels;
    }
    permuted_ = moved != 0;
    target_ = permuted_ ? in_order_ : out_;
    streams_ = plan_.batch * plan_.image_size > kCached && whole_lines_ && (permuted_ ? kGathers : broken == 0);
    fetches_ = !streams_ && !copied_ && plan_.batch * plan_.image_size > kCached / 2;  // smaller ones lose by it
    if (permuted_) {
      for (int64_t c = 0; c < plan_.out_channels; ++c) b_.inverse[c] = 0;  // should a channel be missing
      for (int64_t c = 0; c < plan_.out_channels; ++c) b_.inverse[order[c]] = int32_t(c);
    }
    const int64_t stride = plan_.bias_channel_stride;
    for (int64_t c = 0; c < plan_.out_channels; ++c) b_.bias[c] = bias ? get(bias + order[c] * stride) : 0;
  }

  // The item's rows of V by number: as they are, or widened.
  void take_rows(const WorkItem& item) {
    rows_ = plan_.rows + item.row_start;
    if constexpr (kQuantised<T>) scales_.take(rows_, item.row_count, in_panels_);
    if constexpr (kWidens<T>) {
      widen_rows(static_cast<const int8_t*>(plan_.v), rows_, item.row_count, plan_.patch, b_.rows);
      for (int32_t r = 0; r < item.row_count; ++r) b_.order[r] = r;
      v_ = b_.rows, rows_ = b_.order;
    }
  }

  void run_tile(int64_t begin, int64_t end) {
    locate(begin, end);
    first_stage();
    second_stage();
    if (permuted_) permute(int(end - begin));
  }

  // Prefetches are inlined, as GCC takes a function of nothing else for one without effect and leaves its calls out.

  // Panels are filled at once, without work to wait under.
  [[gnu::always_inline]] void prefetch_all_rows(const WorkItem& item) const {
    const int64_t length = plan_.patch * (kWidens<T> ? 1 : sizeof(T));
    for (int32_t r = 0; r < item.row_count; ++r) {
      const char* row = static_cast<const char*>(plan_.v) + plan_.rows[item.row_start + r] * length;
      for (int64_t k = 0; k < length; k += 64) __builtin_prefetch(row + k, 0, 2);
    }
  }

  // Addresses of the tile's patches and outputs.
  void locate(int64_t begin, int64_t end) {
    const int64_t image_size = plan_.out_height * plan_.out_width * plan_.out_channels;
    int64_t image = begin / item_->position_count, i = begin - image * item_->position_count;
    for (int64_t m = 0; m < end - begin; ++image, i = 0) {
      const int32_t* positions = plan_.positions + item_->position_start + i;
      const int64_t count = smaller(item_->position_count - i, end - begin - m);
      for (int64_t k = 0; k < count; ++k) {
        out_[m + k] = static_cast<Out*>(plan_.out) + image * image_size + positions[k] * plan_.out_channels;
      }
      if (item_->row_count > 0) patches_.locate(image, positions, count, corners_, m);
      m += count;
    }
    const int64_t taps = plan_.geometry.kernel_h * plan_.geometry.kernel_w;
    const Parts parts(end - begin, kPositions);
    block_count_ = int(parts.count);
    for (int b = 0; b < block_count_; ++b) {
      Block<T>& block = blocks_[b];
      block.first = int(parts.begin(b));
      block.positions = int(parts.begin(b + 1)) - block.first;
      if (item_->row_count == 0 || copied_) continue;
      patches_.build(block, corners_, out_, b_.segments + b * taps, b_.pointers + b * taps * kSlots);
    }
  }

  // Z of a block is (rows, positions of the block), or from panels (positions, z_stride_); blocks follow each other.
  float* z(const Block<T>& block, int64_t row) const {
    return b_.z + block.first * z_stride_ + row * (in_panels_ ? 1 : block.positions);
  }

  // Blocks stream through the rows that are in the first-level cache; rows stream through a block copied there.
  void first_stage() {
    const Parts parts = in_panels_ ? Parts(z_stride_ / kLanes, kVectors) : Parts(item_->row_count, kRows);
    if (!copied_) multiply(parts, 0, block_count_);
    for (int b = 0; b < block_count_ && copied_ && parts.count > 0; ++b) {
      if (!streams_) prefetch_outputs(blocks_[b]);
      patches_.pack(blocks_[b], corners_, b_.packed, b_.pointers);
      multiply(parts, b, b + 1);
    }
    if constexpr (kQuantised<T>) {
      for (int b = 0; b < block_count_; ++b) scales_.apply(z(blocks_[b], 0), blocks_[b].positions);
    }
  }

  [[gnu::always_inline]] void prefetch_outputs(const Block<T>& block) const {
    for (int m = block.first; m < block.first + block.positions; ++m) {
      for (int64_t c = 0; c < plan_.out_channels; c += 64 / sizeof(Out)) __builtin_prefetch(out_[m] + c, 0, 2);
    }
  }

  void multiply(const Parts& parts, int first, int last) {
    for (int64_t r = 0; r < parts.count; ++r) {
      if (in_panels_) {
        panel(parts, r, first, last);
      } else {
        dot(parts, r, first, last);
      }
    }
  }

  void panel(const Parts& parts, int64_t p, int first, int last) {
    const int64_t row = parts.begin(p) * kLanes, vectors = parts.begin(p + 1) - parts.begin(p);
    const float* v = b_.panels + row * ceil_div(plan_.patch, Operand<T>::kALane);
    for (int b = first; b < last; ++b) {
      const Block<T>& block = blocks_[b];
      if (fetches_ && p + 1 == parts.count) prefetch_outputs(block);
      HSCC_ISA::panel(block, int(vectors), v, z(block, row), z_stride_);
    }
  }

  void dot(const Parts& parts, int64_t r, int first, int last) {
    const int32_t* order = rows_;
    const int64_t begin = parts.begin(r), count = parts.begin(r + 1) - begin;
    const T* rows[kRows];
    for (int64_t n = 0; n < count; ++n) rows[n] = v_ + order[begin + n] * plan_.patch;
    // What is needed next: under the last rows a block's outputs, if they are not streamed, before them input rows of
    // the tile that follows, else a share of the next rows of V. All are taken to be neighbours in memory: where they
    // are not, no harm is done.
    const int64_t left = parts.count - 1 - r;
    const int64_t row = streams_ ? left : left - 1;
    const bool pixels = 0 <= row && row < new_rows_;
    const T* next = left > 0 ? v_ + order[begin + count] * plan_.patch : nullptr;
    const int64_t rows_ahead = left > 0 && prefetch_rows_ ? parts.begin(r + 2) - parts.begin(r + 1) : 0;
    const int64_t share = rows_ahead > 0 ? rows_ahead * plan_.patch / (last - first) : 0;
    const int64_t numbers = pixels      ? kPositions * plan_.geometry.stride_w * plan_.in_channels
                            : left == 0 ? kPositions * plan_.out_channels
                                        : share;
    const int64_t width = left == 0 && !pixels ? sizeof(Out) : sizeof(T);  // bytes of each
    const int64_t step = (int64_t(double(numbers) * step_share_) + 1) * width;
    for (int b = first; b < last; ++b, next += share) {
      const Block<T>& block = blocks_[b];
      const int64_t i = next_.begin + block.first;
      const void* ahead = next;
      if (left == 0) ahead = out_[block.first];
      if (pixels && i < next_.end) ahead = new_row(i, row);
      HSCC_ISA::dot<T>(block, int(count), rows, z(block, begin), Ahead{static_cast<const char*>(ahead), step});
    }
  }

  // Input row ``row``, counted from the last, of pair i of the tile that follows.
  const T* new_row(int64_t i, int64_t row) const {
    const WorkItem& item = *next_.item;
    const int64_t image = i < item.position_count ? 0 : i / item.position_count;
    const int32_t position = plan_.positions[item.position_start + i - image * item.position_count];
    return patches_.row_from_below(image, position, row);
  }

  // Block by block, so that an output's channels are written one after the other, however many; U waits in a cache.
  void second_stage() {
    const int32_t* order = plan_.channels + item_->region * plan_.out_channels;
    for (int32_t k = 0; k < item_->cluster_count; ++k) {
      const ClusterItem& c = plan_.clusters[item_->cluster_start + k];
      if (c.channel_count == 0) continue;
      const int64_t offset = permuted_ ? c.channel_start : order[c.channel_start];
      const bool dense = c.u_start == kDense;
      const Cluster<Out> cluster{dense ? nullptr : u_ + c.u_start,
                                 b_.bias + c.channel_start,
                                 c.rank,
                                 c.channel_count,
                                 plan_.relu,
                                 streams_ && !permuted_};
      if (dense) {
        for (int b = 0; b < block_count_; ++b) {
          const Block<T>& block = blocks_[b];
          copy_block(cluster, z(block, c.row_start), in_panels_ ? z_stride_ : 1, in_panels_ ? 1 : block.positions,
                     block.positions, target_ + block.first, offset);
        }
        continue;
      }
      const typename SecondStage<Out>::Z* operands[kMaxBlocks];
      for (int b = 0; b < block_count_; ++b) {
        const Block<T>& block = blocks_[b];
        operands[b] = SecondStage<Out>::pack(z(block, c.row_start), z_stride_, in_panels_, c.rank, block.positions,
                                             b_.packed_z + block.first * z_stride_);
      }
      const Parts panels(ceil_div(c.channel_count, SecondStage<Out>::kChannels), SecondStage<Out>::kMost);
      for (int b = 0; b < block_count_; ++b) expand(cluster, panels, blocks_[b], operands[b], offset);
    }
  }

  // ``panels`` come from outside, as finding them takes a division, and blocks are small.
  void expand(Cluster<Out> cluster, const Parts& panels, const Block<T>& block, const typename SecondStage<Out>::Z* z,
              int64_t offset) {
    constexpr int kChannels = SecondStage<Out>::kChannels;
    const Out* u = cluster.u;
    const float* bias = cluster.bias;
    for (int64_t i = 0; i < panels.count; ++i) {
      const int64_t vectors = panels.begin(i + 1) - panels.begin(i), start = panels.begin(i) * kChannels;
      const int64_t last = smaller(cluster.stride - start - (vectors - 1) * kChannels, kChannels);
      cluster.u = u + start;
      cluster.bias = bias + start;
      if (in_panels_) {
        HSCC_ISA::expand<Out, true>(block.positions, int(vectors), cluster, z, z_stride_, target_ + block.first,
                                    offset + start, last);
      } else {
        HSCC_ISA::expand<Out, false>(block.positions, int(vectors), cluster, z, z_stride_, target_ + block.first,
                                     offset + start, last);
      }
    }
  }

  void permute(int positions) {
    for (int m = 0; m < positions; ++m) {
      if constexpr (kGathers) {
        for (int64_t c = 0; c < plan_.out_channels; c += kLanes) {
          const int64_t n = smaller(plan_.out_channels - c, kLanes);
          const Vec y = gather(target_[m], b_.inverse + c, n);
          put_row<1>(out_[m] + c, &y, n, streams_);
        }
      } else {
        for (int64_t c = 0; c < plan_.out_channels; ++c) out_[m][c] = target_[m][b_.inverse[c]];
      }
    }
  }

  const PlanView& plan_;
  const T* v_;
  const int32_t* rows_ = nullptr;  // numbers of the item's rows in v_
  const Out* u_;
  const Buffers<T>& b_;
  PatchBuilder<T>& patches_;
  RowScales<T> scales_;
  const WorkItem* item_ = nullptr;
  bool permuted_ = false, in_panels_ = false, copied_ = false, streams_ = false, fetches_ = false;
  const bool prefetch_rows_ = prefetch_rows(), whole_lines_;
  const double step_share_ = double(Operand<T>::kCount) / double(larger(plan_.patch, 1));  // as divisions are slow
  Span next_{};           // the tile that follows begins where this does,
  int64_t new_rows_ = 0;  // and has so many input rows that this one has not
  int64_t z_stride_ = 0;
  int block_count_ = 0;
  Corners<T> corners_{};
  Block<T> blocks_[kMaxBlocks];
  Out* out_[kTile];
  Out* in_order_[kTile];          // rows of y, where clusters mix channels
  Out* const* target_ = nullptr;  // the one or the other
};

template <typename T>
void run_as(const PlanView& plan, const Span* spans, int64_t span_count) {
  int64_t max_rows = 0, max_panels = 0;
  for (int64_t s = 0; s < span_count; ++s) {
    const WorkItem& item = *spans[s].item;
    max_rows = larger(max_rows, item.row_count);
    if (wants_panels<T>(plan, item)) max_panels = larger(max_panels, padded(item.row_count) * plan.patch);
  }
  Arena measure(nullptr);
  Buffers<T>(measure, plan, max_rows, max_panels);
  Arena arena(thread_scratch(measure.used()));
  const Buffers<T> buffers(arena, plan, max_rows, max_panels);
  if (max_rows > 0) {
    const int zero = kQuantised<T> && !kWidens<T> ? plan.quantisation.zero_point : 0;
    __builtin_memset(buffers.zeros, zero, size_t(plan.geometry.kernel_w * plan.in_channels) * sizeof(T));
  }
  PatchBuilder<T> patches(plan, buffers.zeros, buffers.inside, buffers.runs);
  RegionKernel<T> kernel(plan, buffers, patches);
  for (int64_t s = 0; s < span_count; ++s) kernel.run(spans[s], s + 1 < span_count ? spans[s + 1] : Span{});
  fence();
}

inline void convolve(const PlanView& plan, const Span* spans, int64_t span_count) {
  (plan.bfloat16 ? run_as<BFloat16> : run_as<float>)(plan, spans, span_count);
}

}  // namespace hscc::cpu::HSCC_ISA
