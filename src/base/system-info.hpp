#pragma once

#include <cstddef>
#include <string>

namespace dllama {

/// Cores this process may run on, hyper-threads of one core counted once; at least 1.
int usableCores();
/// Memory that can be taken without swapping, in bytes; 0 if unknown.
size_t availableMemory();
/// The second-level cache that one core has for itself, or its share of a shared one; a guess where nothing is known.
size_t secondLevelCacheBytes();
/// Directory of the running program, without a slash at the end.
std::string programDirectory();

}  // namespace dllama
