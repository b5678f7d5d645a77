// Both stages compiled for every size of a block. Included once for every instruction set.
#pragma once

#include "first_stage.h"
#include "row_panels.h"
#include "second_stage.h"

namespace hscc::cpu::HSCC_ISA {

// By positions and by rows or vectors, one less each; ``dot`` by whether segments are counted, too.
template <typename T>
struct FirstStageKernels {
  DotBlock<T> dot[2][kPositions][kRows];
  PanelBlock<T> panel[kPositions][kVectors];

  constexpr FirstStageKernels() : dot(), panel() {
    for (int m = 0; m < kPositions; ++m) {
      for (int n = 0; n < kRows; ++n) {
        dot[0][m][n] = select_dot_block<T, false>(m + 1, n + 1);
        dot[1][m][n] = select_dot_block<T, true>(m + 1, n + 1);
      }
      for (int n = 0; n < kVectors; ++n) panel[m][n] = select_panel_block<T>(m + 1, n + 1);
    }
  }
};

// By whether Z comes from panels, by positions and by vectors.
template <typename T>
struct SecondStageKernels {
  ExpandBlock<T> expand[2][kPositions][SecondStage<T>::kMost];

  constexpr SecondStageKernels() : expand() {
    for (int m = 0; m < kPositions; ++m) {
      for (int n = 0; n < SecondStage<T>::kMost; ++n) {
        expand[0][m][n] = select_expand_block<T, false>(m + 1, n + 1);
        expand[1][m][n] = select_expand_block<T, true>(m + 1, n + 1);
      }
    }
  }
};

template <typename T>
constexpr FirstStageKernels<T> kFirstStage{};
template <typename T>
constexpr SecondStageKernels<T> kSecondStage{};

// Calls of one of them. Whole blocks, as nearly all are, are called by name, since a processor under some protections
// against speculation predicts no call through a pointer, which then takes as long as several positions.

template <typename T, int N = kRows>
inline void dot(const Block<T>& block, int rows, const T* const* v, float* z, Ahead ahead) {
  if constexpr (N > 1) {
    if (rows < N) return dot<T, N - 1>(block, rows, v, z, ahead);
  }
  if (block.positions == kPositions) {
    if (block.counted) return dot_block<T, true, kPositions, N>(block, v, z, ahead);
    return dot_block<T, false, kPositions, N>(block, v, z, ahead);
  }
  kFirstStage<T>.dot[block.counted][block.positions - 1][N - 1](block, v, z, ahead);
}

template <typename T, int N = kVectors>
inline void panel(const Block<T>& block, int vectors, const float* v, float* z, int64_t stride) {
  if constexpr (N > 1) {
    if (vectors < N) return panel<T, N - 1>(block, vectors, v, z, stride);
  }
  if (block.positions == kPositions) return panel_block<T, kPositions, N>(block, v, z, stride);
  kFirstStage<T>.panel[block.positions - 1][N - 1](block, v, z, stride);
}

template <typename T, bool kByPosition, int N = SecondStage<T>::kMost>
inline void expand(int positions, int vectors, const Cluster<T>& cluster, const typename SecondStage<T>::Z* z,
                   int64_t stride, T* const* out, int64_t offset, int64_t last) {
  if constexpr (N > 1) {
    if (vectors < N) return expand<T, kByPosition, N - 1>(positions, vectors, cluster, z, stride, out, offset, last);
  }
  if (positions == kPositions) {
    return SecondStage<T>::template block<kByPosition, kPositions, N>(cluster, z, stride, out, offset, last);
  }
  kSecondStage<T>.expand[kByPosition][positions - 1][N - 1](cluster, z, stride, out, offset, last);
}

}  // namespace hscc::cpu::HSCC_ISA
