// The Python module hscc_kernels._C: empty, loading it registers the ops of the library with torch.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/isa.h"

namespace {

std::string build_info() {
  return std::string("cpu: ") + hscc::cpu::isa_name(hscc::cpu::chosen_isa());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(hscc, m) {
  m.def("_build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(hscc, CompositeExplicitAutograd, m) {
  m.impl("_build_info", TORCH_BOX(&build_info));
}

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}
