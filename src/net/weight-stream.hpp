#pragma once

#include <functional>
#include <string>
#include <vector>

#include "format/tensor-source.hpp"
#include "net/connection.hpp"
#include "net/slice-store.hpp"

namespace dllama {

/// Sends the slices in order, in pieces of at most 1 MB, each slice followed by its hash. `progress` is told the bytes
/// sent so far. Throws ConnectionError.
void sendSlices(Connection& connection, uint32_t session, const TensorSource& source,
                const std::vector<TensorSlice>& slices, const std::function<void(size_t done)>& progress);

/// Receives what sendSlices() sends and completes `store`. Returns why the slices are not kept for the next start, or
/// "". Throws ConnectionError, and ProtocolError if something arrives out of order, does not fit or has another hash.
std::string receiveSlices(Connection& connection, uint32_t session, SliceStore& store);

}  // namespace dllama
