#pragma once

#include <cstddef>
#include <string>

namespace dllama {

/// Cores this process may run on, hyper-threads of one core counted once; at least 1.
int usableCores();
/// Memory that can be taken without swapping, in bytes; 0 if unknown.
size_t availableMemory();
/// Directory of the running program, without a slash at the end.
std::string programDirectory();

}  // namespace dllama
