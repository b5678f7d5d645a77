// The op's arguments as tensors, and their checked conversion to a PlanView.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plan_view.h"

namespace hscc {

// What an int8 call has more; its v is int8, its x float or uint8, all else float.
struct Int8Tensors {
  const torch::stable::Tensor& v_scale;
  double scale;
  int64_t zero_point;
};

struct PlanTensors {
  const torch::stable::Tensor& x;
  const std::optional<torch::stable::Tensor>& bias;
  const torch::stable::Tensor& v;  // contiguous, as u
  const torch::stable::Tensor& u;
  const torch::stable::Tensor& positions;
  const torch::stable::Tensor& rows;
  const torch::stable::Tensor& channels;
  const torch::stable::Tensor& work;
  const torch::stable::Tensor& clusters;
  const std::vector<int64_t>& sizes;
  const std::string& activation;
  const Int8Tensors* int8 = nullptr;
};

// Raises on anything that would let a kernel read or write outside the tensors; x and out pointers are left null.
PlanView view_plan(const PlanTensors& tensors);

}  // namespace hscc
