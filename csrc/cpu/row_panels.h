// First stage again, with the lanes along the rows. Included once for every instruction set.
//
// Short patches, as those of first layers and 1 x 1 convolutions, do not pay for the sum over lanes of first_stage.h.
// Here the rows of an item are transposed once into panels of a few vectors, each patch element is broadcast, and Z
// comes out with the rows of a position next to each other; what ranks leave of the last vector is wasted.
#pragma once

#include "operand.h"
#include "patches.h"

namespace hscc::cpu::HSCC_ISA {

constexpr int64_t kMostPanels = 1 << 17;  // numbers in an item's panels, so that they stay in the second-level cache

inline int64_t padded(int64_t rows) {
  return ceil_div(rows, kLanes) * kLanes;
}

// Whether some lane's numbers would come from two runs of a patch, so that only a copy of it has them together.
template <typename T>
bool splits_lanes(const PlanView& plan) {
  return plan.in_channels % Operand<T>::kALane != 0;
}

// Whether panels are quicker for an item, by what each way takes of a position's time, in multiply-add instructions: a
// sum over lanes 4 a row, pointers 5 a kernel row, a vector transposed for one image 8 an element; of copied patches,
// as measured on a Skylake, 45 and 14 a kernel row, and each row 1.6 times as much as of others.
template <typename T>
bool wants_panels(const PlanView& plan, const WorkItem& item) {
  const Geometry& g = plan.geometry;
  const int64_t rows = item.row_count;
  const int64_t vectors = padded(rows) / kLanes, runs = g.dilation_w == 1 ? g.kernel_h : g.kernel_h * g.kernel_w;
  if (rows == 0 || plan.patch == 0 || padded(rows) * plan.patch > kMostPanels) return false;
  if (splits_lanes<T>(plan) && !packs(plan)) return false;
  const double copies = double(45 + 14 * runs);
  const double along = double(vectors * ceil_div(plan.patch, Operand<T>::kALane)) *
                           ((vectors == 1 ? 1.5 : 1.1) + 8.0 / double(item.position_count)) +
                       double(5 * runs * ceil_div(vectors, kVectors)) + (splits_lanes<T>(plan) ? copies : 0);
  const int64_t length = packs(plan) ? plan.patch : plan.patch / runs;
  const int64_t loads = plan.patch / length * ceil_div(length, Operand<T>::kCount);
  const double dots = double(rows * (loads + 4));
  return along < (packs(plan) ? 1.6 * dots + copies : dots);
}

// Transposes kLanes vectors: a[i][j] becomes a[j][i].
inline void transpose(Vec* a) {
#pragma GCC unroll 8
  for (int step = 1; step < kLanes; step *= 2) {
    Vec b[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      b[2 * i] = interleave<0>(a[i], a[i + kLanes / 2]);
      b[2 * i + 1] = interleave<1>(a[i], a[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) a[i] = b[i];
  }
}

// Rows by number into panels of at most kVectors vectors, (patch, lanes) each, in turn; zeros fill the last vector. Of
// operands whose lanes hold several numbers, (patch / numbers, lanes).
template <typename T>
void fill_panels(const T* v, const int32_t* order, int64_t rows, int64_t patch, const Parts& parts, float* to) {
  using Of = Operand<T>;
  for (int64_t p = 0; p < parts.count; ++p) {
    const int64_t width = (parts.begin(p + 1) - parts.begin(p)) * kLanes;
    for (int64_t lane = 0; lane < width; lane += kLanes) {
      const int64_t row = parts.begin(p) * kLanes + lane, count = smaller(rows - row, kLanes);
      float* column = to + lane;
      for (int64_t k = 0; k < patch; k += Of::kCount) {
        const int64_t length = smaller(patch - k, Of::kCount);
        Vec a[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          a[i] = i < count ? Of::lanes(Of::load(v + order[row + i] * patch + k, length)) : zero();
        }
        transpose(a);
        for (int64_t i = 0; i < ceil_div(length, Of::kALane); ++i, column += width) store(column, a[i]);
      }
    }
    to += ceil_div(patch, Of::kALane) * width;
  }
}

// z[m][n] = patch m . row n of a panel of N vectors, for M positions; rows of z are ``stride`` apart.
template <typename T, int M, int N>
void panel_block(const Block<T>& block, const float* panel, float* z, int64_t stride) {
  using Of = Operand<T>;
  constexpr int kChains = M * N < 12 ? 2 : 1;  // enough sums in flight to hide what a multiply-add takes
  constexpr int kSteps = kChains == 2 || kLanes == 16 ? 2 : 1;  // in a round; if two, a patch has its own pointer
  Vec acc[kChains][M * N];
#pragma GCC unroll 2
  for (int c = 0; c < kChains; ++c) {
#pragma GCC unroll 32
    for (int i = 0; i < M * N; ++i) acc[c][i] = zero();
  }
  const T* const* x = block.pointers;
  const Segment* end = block.segments + block.segment_count;
  for (const Segment* segment = block.segments; segment != end; ++segment, x += block.step) {
    const T* patch[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) patch[m] = x[m] + segment->x_offset;
    const float* v = panel + segment->v_offset / Of::kALane * (N * kLanes);
    const auto step = [&](int i, auto... count) __attribute__((always_inline)) {
      typename Of::Type b[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) b[n] = Of::from_lanes(load(v + (i * N + n) * kLanes));
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const typename Of::Type a = Of::broadcast(patch[m] + i * Of::kALane, count...);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          Vec& sum = acc[i % kChains][m * N + n];
          sum = Of::dot(a, b[n], sum);
        }
      }
    };
    const auto advance = [&](int steps) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        patch[m] += steps * Of::kALane;
        if constexpr (kSteps > 1) pin(patch[m]);
      }
      v += steps * N * kLanes;
    };
    int64_t left = segment->length;
    for (; left >= kSteps * Of::kALane; left -= kSteps * Of::kALane) {
#pragma GCC unroll 2
      for (int i = 0; i < kSteps; ++i) step(i);
      advance(kSteps);
    }
    for (; left >= Of::kALane; left -= Of::kALane) {
      step(0);
      advance(1);
    }
    if (left > 0) step(0, left);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      Vec sum = acc[0][m * N + n];
      if constexpr (kChains > 1) sum = Of::add(sum, acc[1][m * N + n]);
      store(z + m * stride + n * kLanes, sum);
    }
  }
}

template <typename T>
using PanelBlock = void (*)(const Block<T>&, const float* panel, float* z, int64_t stride);

template <typename T, int M = kPositions, int N = kVectors>
constexpr PanelBlock<T> select_panel_block(int positions, int vectors) {
  if constexpr (M > 1) {
    if (positions < M) return select_panel_block<T, M - 1, N>(positions, vectors);
  }
  if constexpr (N > 1) {
    if (vectors < N) return select_panel_block<T, M, N - 1>(positions, vectors);
  }
  return panel_block<T, M, N>;
}

}  // namespace hscc::cpu::HSCC_ISA
