// Pixels times a matrix: the second stage with pixels in the place of Z; or planes added up where a plane comes out.
// Included once for every instruction set.
#pragma once

#include "second_stage.h"

namespace hscc::cpu::HSCC_ISA {

inline void multiply(const Product& p, int64_t begin, int64_t end) {
  const Parts panels(ceil_div(p.out_channels, kLanes), kVectors);
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const Parts blocks(smaller(end - tile, kTile), kPositions);
    for (int64_t i = 0; i < panels.count; ++i) {
      const int64_t first = panels.begin(i), vectors = panels.begin(i + 1) - first, start = first * kLanes;
      const int64_t last = smaller(p.out_channels - start - (vectors - 1) * kLanes, kLanes);
      const Cluster<float> columns{p.matrix + start, nullptr, p.in_channels, p.out_channels, false, false};
      for (int64_t b = 0; b < blocks.count; ++b) {
        const int64_t row = tile + blocks.begin(b);
        const int rows = int(tile + blocks.begin(b + 1) - row);
        float* out[kPositions];
        for (int m = 0; m < rows; ++m) out[m] = p.out + (row + m) * p.out_channels;
        select_expand_block<float, true>(rows, int(vectors))(columns, p.x + row * p.in_channels, p.in_channels, out,
                                                             start, last);
      }
    }
  }
}

inline void add_planes(const Planes& p, int64_t begin, int64_t end) {
  for (int64_t stop; begin < end; begin = stop) {
    const int64_t image = begin / p.pixels;
    const float* x = p.x + image * (p.in_channels - 1) * p.pixels;  // where the planes before would have one channel
    const auto step = [&](int64_t i, auto... count) {
      Vec sum = zero();
      for (int64_t c = 0; c < p.in_channels; ++c) {
        sum = fma(broadcast(p.weights + c), load(x + c * p.pixels + i, count...), sum);
      }
      store(p.out + i, sum, count...);
    };
    stop = smaller(end, (image + 1) * p.pixels);
    int64_t i = begin;
    for (; i + kLanes <= stop; i += kLanes) step(i);
    if (i < stop) step(i, stop - i);
  }
}

}  // namespace hscc::cpu::HSCC_ISA
