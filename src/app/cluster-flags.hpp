#pragma once

#include <cstdio>
#include <optional>
#include <string>

#include "app/device.hpp"
#include "app/options.hpp"
#include "base/thread-pool.hpp"
#include "cluster/cluster-forward.hpp"

namespace dllama {

/// The secret in the file, or in $DLLAMA_SECRET, or none.
std::optional<Secret> findSecret(const std::string& secretFile);

/// What the flags say, for a root that computes on the device `root` with `pool`. Throws ConfigError for a value that
/// cannot be, and for a worker on another machine without secret or --insecure.
ClusterOptions clusterOptions(const ModelOptions& options, Device root, ThreadPool& pool, std::FILE* status);

}  // namespace dllama
