// Both stages compiled for every size of a block. Included once for every instruction set.
#pragma once

#include "first_stage.h"
#include "row_panels.h"
#include "second_stage.h"

namespace hscc::cpu::HSCC_ISA {

// By positions and by rows or vectors, one less each; ``dot`` by whether segments are counted, ``expand`` by whether Z
// comes from panels, too.
template <typename T>
struct BlockKernels {
  DotBlock<T> dot[2][kPositions][kRows];
  PanelBlock<T> panel[kPositions][kVectors];
  ExpandBlock<T> expand[2][kPositions][SecondStage<T>::kMost];

  constexpr BlockKernels() : dot(), panel(), expand() {
    for (int m = 0; m < kPositions; ++m) {
      for (int n = 0; n < kRows; ++n) {
        dot[0][m][n] = select_dot_block<T, false>(m + 1, n + 1);
        dot[1][m][n] = select_dot_block<T, true>(m + 1, n + 1);
      }
      for (int n = 0; n < kVectors; ++n) panel[m][n] = select_panel_block<T>(m + 1, n + 1);
      for (int n = 0; n < SecondStage<T>::kMost; ++n) {
        expand[0][m][n] = select_expand_block<T, false>(m + 1, n + 1);
        expand[1][m][n] = select_expand_block<T, true>(m + 1, n + 1);
      }
    }
  }
};

template <typename T>
constexpr BlockKernels<T> kBlockKernels{};

}  // namespace hscc::cpu::HSCC_ISA
