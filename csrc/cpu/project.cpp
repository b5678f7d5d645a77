// hscc::project_cpu: checks, layout, one parallel region over equal shares of the pixels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "isa.h"
#include "nhwc.h"

namespace hscc::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kShare = 48;  // pixels, whole blocks of every instruction set

Tensor project(const Tensor& x, const Tensor& matrix) {
  for (const Tensor* t : {&x, &matrix}) {
    STD_TORCH_CHECK(t->is_cpu() && t->scalar_type() == ScalarType::Float, "x, matrix: got dtype ",
                    int(t->scalar_type()), ", expected ", int(ScalarType::Float), " on the CPU");
  }
  STD_TORCH_CHECK(x.dim() == 4 && matrix.dim() == 2 && x.size(1) == matrix.size(0), "x, matrix: got ", x.dim(), " and ",
                  matrix.dim(), " dimensions, expected (N, C, H, W) and (C, c)");
  const int64_t channels = matrix.size(1);
  Tensor out = empty_nhwc(x.size(0), channels, x.size(2), x.size(3), aoti_torch_dtype_float32());
  if (out.numel() == 0) return out;
  const Tensor x_nhwc = as_nhwc(x), rows = matrix.is_contiguous() ? matrix : torch::stable::contiguous(matrix);
  const Product product{x.size(0) * x.size(2) * x.size(3),
                        x.size(1),
                        channels,
                        x_nhwc.const_data_ptr<float>(),
                        rows.const_data_ptr<float>(),
                        out.mutable_data_ptr<float>()};
  const Kernels& kernels = chosen_kernels();
  const int64_t blocks = (product.pixels + kShare - 1) / kShare;
  const int64_t grain = (blocks - 1) / std::max<int64_t>(1, torch::stable::get_num_threads()) + 1;
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    kernels.multiply(product, begin * kShare, std::min(end * kShare, product.pixels));
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hscc, CPU, m) {
  m.impl("project_cpu", TORCH_BOX(&project));
}

}  // namespace hscc::cpu
