// hscc::lowrank_conv2d_cpu: checks, layout, the kernel.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "isa.h"
#include "nhwc.h"
#include "plan_tensors.h"
#include "shares.h"
#include "strings.h"

namespace hscc::cpu {

void* thread_scratch(size_t bytes) {
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  thread_local std::unique_ptr<char, Free> memory;
  thread_local size_t size = 0;
  if (bytes > size) {
    memory.reset();
    size = 0;
    memory.reset(static_cast<char*>(::operator new(bytes, std::align_val_t(64))));
    size = bytes;
  }
  return memory.get();
}

namespace {

using torch::stable::Tensor;

Tensor lowrank_conv2d(const Tensor& x, const std::optional<Tensor>& bias, const Tensor& v, const Tensor& u,
                      const Tensor& positions, const Tensor& rows, const Tensor& channels, const Tensor& work,
                      const Tensor& clusters, const std::vector<int64_t>& sizes, StringHandle activation_handle) {
  const std::string activation = take(activation_handle);
  const Kernels& kernels = chosen_kernels();
  const Tensor v_packed = v.is_contiguous() ? v : torch::stable::contiguous(v);
  const Tensor u_packed = u.is_contiguous() ? u : torch::stable::contiguous(u);
  PlanView plan =
      view_plan({x, bias, v_packed, u_packed, positions, rows, channels, work, clusters, sizes, activation});
  const int32_t dtype = plan.bfloat16 ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32();
  Tensor out = empty_nhwc(plan.batch, plan.out_channels, plan.out_height, plan.out_width, dtype);
  if (out.numel() == 0) return out;
  const Tensor x_nhwc = as_nhwc(x);
  plan.x = x_nhwc.const_data_ptr();
  plan.out = out.mutable_data_ptr();

  run_shares(plan, kernels.convolve);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hscc, CPU, m) {
  m.impl("lowrank_conv2d_cpu", TORCH_BOX(&lowrank_conv2d));
}

}  // namespace hscc::cpu
