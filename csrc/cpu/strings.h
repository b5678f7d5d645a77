// Texts that come across torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>

#include <memory>
#include <string>

namespace hscc::cpu {

// A ``str`` argument. torch's own conversion to std::string never frees one that it makes, 48 bytes in each call,
// between which the heap finds no room for the next output: a process would grow by every output it ever made.
inline std::string take(StringHandle handle) {
  const std::unique_ptr<StringOpaque, decltype(&torch_delete_string)> owned(handle, torch_delete_string);
  const char* data = nullptr;
  size_t length = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  return {data, length};
}

}  // namespace hscc::cpu
