#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.hpp"
#include "base/output-file.hpp"

namespace dllama {

/// The residual behind each layer as files of a folder, to be compared with another implementation's or another
/// cluster's: layer-000.f32, layer-001.f32, ... hold (rows, dim) raw little-endian float32, and index.json says what
/// they are: {"rows", "dim", "positions": [of each row], "layers": [file names]}.
class LayerDump {
  public:
    /// Makes the folder. Throws FormatError, naming the path, if that cannot be done or written to; so do all functions
    /// here.
    explicit LayerDump(const std::string& folder);

    /// Appends the step's nTokens rows of `x`, the residual behind `layer`. Layers come in order, 0 first.
    void add(int layer, const StepInputs& step, Backend& backend, const Activations& x);
    /// Completes the files. What is computed afterwards is not written.
    void finish();

  private:
    std::string folder_;
    std::vector<std::string> names_;
    std::vector<std::unique_ptr<OutputFile>> files_;  // of each layer
    std::vector<int> positions_;
    int dim_ = 0;
    bool isFinished_ = false;
    std::vector<float> rows_;
};

}  // namespace dllama
