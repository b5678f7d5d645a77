// Runs an AOTInductor package of a compressed network without Python:
//   run MODEL.pt2 _C.abi3.so INPUT OUTPUT N C H W
// INPUT and OUTPUT are raw float32, row by row; OUTPUT is the first output.
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/library.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

// The kernels are in the library; what their arguments are stands in Python, in hscc_kernels/ops.py.
TORCH_LIBRARY_FRAGMENT(hscc, m) {
  m.def(
      "lowrank_conv2d_cpu(Tensor x, Tensor? bias, Tensor v, Tensor u, Tensor positions, Tensor rows, Tensor channels, "
      "Tensor work, Tensor clusters, int[] sizes, str activation) -> Tensor");
  m.def("project_cpu(Tensor x, Tensor matrix) -> Tensor");
}

namespace {

at::Tensor read(const std::string& path, const std::vector<int64_t>& shape) {
  at::Tensor x = at::empty(shape, at::kFloat);
  std::ifstream file(path, std::ios::binary);
  file.read(static_cast<char*>(x.data_ptr()), static_cast<std::streamsize>(x.nbytes()));
  if (!file || file.peek() != std::ifstream::traits_type::eof())
    throw std::runtime_error(path + ": expected exactly " + std::to_string(x.nbytes()) + " bytes");
  return x;
}

void write(const std::string& path, const at::Tensor& tensor) {
  const at::Tensor y = tensor.contiguous();
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(y.data_ptr()), static_cast<std::streamsize>(y.nbytes()));
  if (!file.flush()) throw std::runtime_error(path + ": could not be written");
}

void run(char** arguments) {
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 0);  // else a package reads an input of another shape as if it were its own
  if (!dlopen(arguments[1], RTLD_LAZY | RTLD_GLOBAL)) throw std::runtime_error(dlerror());  // registers the kernels
  torch::inductor::AOTIModelPackageLoader model(arguments[0]);
  for (const auto& [key, text] : model.get_metadata()) std::cout << key << ": " << text << '\n';
  std::vector<int64_t> shape;
  for (int i = 4; i < 8; ++i) shape.push_back(std::stoll(arguments[i]));
  const c10::InferenceMode guard;
  const at::Tensor y = model.run({read(arguments[2], shape)}).at(0);
  if (y.scalar_type() != at::kFloat) throw std::runtime_error("output: expected float32");
  write(arguments[3], y);
  std::cout << "output: " << y.sizes() << '\n';
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 9) {
    std::cerr << "usage: run MODEL.pt2 _C.abi3.so INPUT OUTPUT N C H W\n";
    return 2;
  }
  try {
    run(arguments + 1);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
