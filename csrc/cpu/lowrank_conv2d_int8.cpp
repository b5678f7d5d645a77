// hscc::lowrank_conv2d_int8_cpu: checks, inputs to 8 bits, the kernel.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "isa.h"
#include "nhwc.h"
#include "plan_tensors.h"
#include "shares.h"
#include "strings.h"

namespace hscc::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 15;  // inputs that are worth a thread

// x as the kernel reads it: itself, or new memory in its order.
Tensor quantise(const PlanView& plan, const Int8Kernels& kernels, const Tensor& x) {
  const bool in_bytes = x.scalar_type() == torch::headeronly::ScalarType::Byte;
  if (in_bytes && !plan.quantisation.words) return x;
  const int32_t dtype = plan.quantisation.words ? aoti_torch_dtype_int16() : aoti_torch_dtype_uint8();
  Tensor out = empty_nhwc(plan.batch, plan.in_channels, plan.height, plan.width, dtype);
  const void* from = x.const_data_ptr();
  void* to = out.mutable_data_ptr();
  torch::stable::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    if (in_bytes) {
      kernels.widen(plan.quantisation, static_cast<const uint8_t*>(from), to, begin, end);
    } else {
      kernels.quantise(plan.quantisation, static_cast<const float*>(from), to, begin, end);
    }
  });
  return out;
}

Tensor lowrank_conv2d_int8(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& v, const Tensor& v_scale,
                           const Tensor& u, const Tensor& positions, const Tensor& rows, const Tensor& channels,
                           const Tensor& work, const Tensor& clusters, const std::vector<int64_t>& sizes, double scale,
                           int64_t zero_point, StringHandle activation_handle) {
  const std::string activation = take(activation_handle);
  const Int8Kernels& kernels = chosen_int8_kernels();
  const Tensor v_packed = v.is_contiguous() ? v : torch::stable::contiguous(v);
  const Tensor u_packed = u.is_contiguous() ? u : torch::stable::contiguous(u);
  const Int8Tensors int8{v_scale, scale, zero_point};
  PlanView plan =
      view_plan({x, bias, v_packed, u_packed, positions, rows, channels, work, clusters, sizes, activation, &int8});
  Tensor out = empty_nhwc(plan.batch, plan.out_channels, plan.out_height, plan.out_width, aoti_torch_dtype_float32());
  if (out.numel() == 0) return out;
  plan.quantisation.words = kernels.needs_words(static_cast<const int8_t*>(plan.v), plan.pool_rows * plan.patch);
  const Tensor x_quantised = quantise(plan, kernels, as_nhwc(x));
  plan.x = x_quantised.const_data_ptr();
  plan.out = out.mutable_data_ptr();
  run_shares(plan, kernels.convolve);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hscc, CPU, m) {
  m.impl("lowrank_conv2d_int8_cpu", TORCH_BOX(&lowrank_conv2d_int8));
}

}  // namespace hscc::cpu
