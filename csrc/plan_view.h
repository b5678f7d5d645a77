// PlanView: one call of lowrank_conv2d as plain sizes and pointers, checked so that no kernel can leave its tensors.
#pragma once

#include <cstdint>

namespace hscc {

// A row of the plan's work list, as in hscc_kernels/layout.py.
struct WorkItem {
  int32_t region, position_start, position_count, row_start, row_count, cluster_start, cluster_count, macs;
};

// A row of the plan's cluster table; u_start == kDense means that the first-stage rows are the outputs.
struct ClusterItem {
  int32_t channel_start, channel_count, row_start, rank, u_start;
};
constexpr int32_t kDense = -1;

struct Geometry {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// bfloat16 as it is stored; kernels compute in float.
struct BFloat16 {
  uint16_t bits;
};

// A quantised input from 0 to 255, and a number of V in the same bits, signed.
struct Byte {
  uint8_t bits;
};

// The same in 16 bits: an input less its zero point, and a number of V.
struct Word {
  int16_t value;
};

// What of an int8 call is not in a float one: x is round(input / scale) + zero_point, and a sum of products of integers
// in row r of V counts scale * row_scales[r].
struct Quantisation {
  const float* row_scales;  // (pool_rows)
  float scale;
  int32_t zero_point;  // 0 to 255
  bool words;          // whether x holds Word, else Byte
};

// Shapes: x (batch, height, width, in_channels), v (pool_rows, patch), out (batch, out_height, out_width,
// out_channels). x, v, u, bias and out hold BFloat16 where ``bfloat16`` says so, else float; in an int8 call v holds
// int8 and x what ``quantisation`` says.
struct PlanView {
  int64_t batch, height, width, in_channels, out_height, out_width, out_channels;
  int64_t image_size;  // numbers in the maps of an image, in and out
  int64_t patch, pool_rows, regions, work_count, row_total, cluster_total, u_size;
  Geometry geometry;
  const void* x;
  const void* v;
  const void* u;
  const void* bias;  // (regions, out_channels) by the strides below, or null
  int64_t bias_region_stride, bias_channel_stride;
  const int32_t* positions;
  const int32_t* rows;
  const int32_t* channels;
  const WorkItem* work;
  const ClusterItem* clusters;
  void* out;
  bool relu, bfloat16;
  Quantisation quantisation;
};

}  // namespace hscc
