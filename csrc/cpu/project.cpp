// hscc::project_cpu: checks, layout, a parallel region over equal shares of the pixels.
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

constexpr int64_t kLeast = 16;  // pixels that are worth a thread

// Calls run(begin, end) on parts of [0, count) of equal size, at most one a thread.
template <typename Run>
void share(int64_t count, const Run& run) {
  const int64_t shares = std::clamp<int64_t>(count / kLeast, 1, std::max<int64_t>(1, torch::stable::get_num_threads()));
  torch::stable::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) run(count * s / shares, count * (s + 1) / shares);
  });
}

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
  const Tensor rows = matrix.is_contiguous() ? matrix : torch::stable::contiguous(matrix);
  const Kernels& kernels = chosen_kernels();
  const int64_t image = x.size(2) * x.size(3);
  if (channels == 1 && is_ordered(x, {3, 2, 1, 0})) {
    const Planes planes{image, x.size(1), x.const_data_ptr<float>(), rows.const_data_ptr<float>(),
                        out.mutable_data_ptr<float>()};
    share(x.size(0) * image, [&](int64_t begin, int64_t end) { kernels.add_planes(planes, begin, end); });
    return out;
  }
  const Tensor x_nhwc = as_nhwc(x);
  const Product product{x.size(0) * image,
                        x.size(1),
                        channels,
                        x_nhwc.const_data_ptr<float>(),
                        rows.const_data_ptr<float>(),
                        out.mutable_data_ptr<float>()};
  share(product.pixels, [&](int64_t begin, int64_t end) { kernels.multiply(product, begin, end); });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hscc, CPU, m) {
  m.impl("project_cpu", TORCH_BOX(&project));
}

}  // namespace hscc::cpu
