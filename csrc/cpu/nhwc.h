// Tensors whose memory is (batch, height, width, channels) without gaps.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace hscc::cpu {

// Whether x's memory has its dimensions in this order, the one whose neighbours are neighbours there first, and no
// gaps.
inline bool is_ordered(const torch::stable::Tensor& x, const int (&order)[4]) {
  const auto size = x.sizes();
  const auto stride = x.strides();
  int64_t expected = 1;
  for (int dim : order) {
    if (size[dim] != 1 && stride[dim] != expected) return false;
    expected *= size[dim];
  }
  return true;
}

// x itself where its memory is so already, else a copy.
inline torch::stable::Tensor as_nhwc(const torch::stable::Tensor& x) {
  if (is_ordered(x, {1, 3, 2, 0})) return x;
  return torch::stable::contiguous(x, torch::headeronly::MemoryFormat::ChannelsLast);
}

// Memory for an output; torch::stable::empty would look its op up by name in each call.
inline torch::stable::Tensor empty_nhwc(int64_t batch, int64_t channels, int64_t height, int64_t width, int32_t dtype) {
  const int64_t size[] = {batch, channels, height, width};
  const int64_t stride[] = {height * width * channels, 1, width * channels, channels};
  AtenTensorHandle out = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(4, size, stride, dtype, aoti_torch_device_type_cpu(), 0, &out));
  return torch::stable::Tensor(out);
}

}  // namespace hscc::cpu
