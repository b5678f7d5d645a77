// Second stage: y = U Z + bias, activation. Included once for every instruction set.
//
// A matrix product with the vector lanes along a cluster's channels; the first stage left Z packed as it is read here.
#pragma once

#include "patches.h"

namespace hscc::cpu::HSCC_ISA {

constexpr size_t kLine = 64;  // bytes of a cache line

// Where a block's results go: channel c of its position m to out[m][c].
template <typename T>
struct Cluster {
  const T* u;         // (rank, stride), the first of the columns wanted
  const float* bias;  // a value a column, or null
  int64_t rank, stride;
  bool relu;
  bool streams;  // whether outputs go past the caches, in whole lines
};

// N vectors, the last of ``last`` lanes; those that stream are whole lines.
template <int N, typename T>
[[gnu::always_inline]] inline void put_row(T* p, const Vec* y, int64_t last, bool streams) {
  if constexpr (kLanes * sizeof(T) == kLine) {
    if (streams) {
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) stream(p + n * kLanes, y[n]);
      return;
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n + 1 < N; ++n) store(p + n * kLanes, y[n]);
  store(p + (N - 1) * kLanes, y[N - 1], last);
}

// N vectors of channels, the last of ``last`` lanes, for M positions; z is (rank, M), or (M, rank) of that row stride.
template <typename T, bool kByPosition, int M, int N>
void expand_block(const Cluster<T>& cluster, const float* z, int64_t stride, T* const* out, int64_t offset,
                  int64_t last) {
  Vec acc[M * N];
#pragma GCC unroll 32
  for (int i = 0; i < M * N; ++i) acc[i] = zero();
  const T* u = cluster.u;
  for (int64_t k = 0; k < cluster.rank; ++k, u += cluster.stride, z += kByPosition ? 1 : M) {
    Vec b[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) b[n] = n + 1 < N ? load(u + n * kLanes) : load(u + n * kLanes, last);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      Vec a = broadcast(kByPosition ? z + m * stride : z + m);
      if constexpr (N > 1) pin(a);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) acc[m * N + n] = fma(a, b[n], acc[m * N + n]);
    }
  }
  if (cluster.bias != nullptr) {  // last, because sums of small numbers round less than sums that start from the bias
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const float* p = cluster.bias + n * kLanes;
      const Vec bias = n + 1 < N ? load(p) : load(p, last);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[m * N + n] = add(acc[m * N + n], bias);
    }
  }
  if (cluster.relu) {
#pragma GCC unroll 32
    for (int i = 0; i < M * N; ++i) acc[i] = relu(acc[i]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    put_row<N>(out[m] + offset, acc + m * N, last, cluster.streams);
  }
}

// How Z is multiplied by U: as floats, where the first stage left them. An instruction set that multiplies narrower
// numbers itself has a SecondStage of its own for them.
template <typename T>
struct SecondStage {
  using Z = float;
  static constexpr bool kPacks = false;     // whether Z is copied first
  static constexpr int kChannels = kLanes;  // of U that are loaded together,
  static constexpr int kMost = kVectors;    // so many times for a block

  static const Z* pack(const float* z, int64_t, bool, int64_t, int, Z*) { return z; }

  template <bool kByPosition, int M, int N>
  static constexpr auto block = expand_block<T, kByPosition, M, N>;
};

template <typename T>
using ExpandBlock = void (*)(const Cluster<T>&, const typename SecondStage<T>::Z*, int64_t, T* const*, int64_t,
                             int64_t);

template <typename T, bool kByPosition, int M = kPositions, int N = SecondStage<T>::kMost>
constexpr ExpandBlock<T> select_expand_block(int positions, int vectors) {
  if constexpr (M > 1) {
    if (positions < M) return select_expand_block<T, kByPosition, M - 1, N>(positions, vectors);
  }
  if constexpr (N > 1) {
    if (vectors < N) return select_expand_block<T, kByPosition, M, N - 1>(positions, vectors);
  }
  return SecondStage<T>::template block<kByPosition, M, N>;
}

// A dense cluster: its rows of z are the outputs; row r of position m is z[r * row + m * position].
template <typename T>
void copy_block(const Cluster<T>& cluster, const float* z, int64_t position, int64_t row, int positions, T* const* out,
                int64_t offset) {
  for (int m = 0; m < positions; ++m, z += position) {
    T* to = out[m] + offset;
    if (row == 1) {
      for (int64_t c = 0; c < cluster.rank; c += kLanes) {
        const int64_t n = smaller(cluster.rank - c, kLanes);
        const Vec y = add(load(z + c, n), load(cluster.bias + c, n));
        store(to + c, cluster.relu ? relu(y) : y, n);
      }
    } else {
      for (int64_t c = 0; c < cluster.rank; ++c) {
        const float y = z[c * row] + cluster.bias[c];
        put(to + c, cluster.relu && y <= 0 ? 0 : y);
      }
    }
  }
}

}  // namespace hscc::cpu::HSCC_ISA
