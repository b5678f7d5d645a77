// Pixels times a matrix: the second stage with pixels in the place of Z. Included once for every instruction set.
#pragma once

#include "second_stage.h"

namespace hscc::cpu::HSCC_ISA {

// Rows [begin, end) of the product, begin a multiple of the whole blocks that they are computed in.
inline void multiply(const Product& p, int64_t begin, int64_t end) {
  const Parts panels(ceil_div(p.out_channels, kLanes), kVectors);
  for (int64_t tile = begin; tile < end; tile += kMaxBlocks * kPositions) {
    const int64_t tile_end = smaller(tile + kMaxBlocks * kPositions, end);
    for (int64_t i = 0; i < panels.count; ++i) {
      const int64_t first = panels.begin(i), vectors = panels.begin(i + 1) - first, start = first * kLanes;
      const int64_t last = smaller(p.out_channels - start - (vectors - 1) * kLanes, kLanes);
      const Cluster<float> columns{p.matrix + start, nullptr, p.in_channels, p.out_channels, false};
      for (int64_t row = tile; row < tile_end; row += kPositions) {
        const int rows = int(smaller(kPositions, tile_end - row));
        float* out[kPositions];
        for (int m = 0; m < rows; ++m) out[m] = p.out + (row + m) * p.out_channels;
        select_expand_block<float, true>(rows, int(vectors))(columns, p.x + row * p.in_channels, p.in_channels, out,
                                                             start, last);
      }
    }
  }
}

}  // namespace hscc::cpu::HSCC_ISA
