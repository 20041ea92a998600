#include "model/layer-dump.hpp"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/errors.hpp"

namespace dllama {

LayerDump::LayerDump(const std::string& folder) : folder_(folder) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (!std::filesystem::is_directory(folder))
        throw FormatError("{}: cannot be made: {}", folder, error ? error.message() : "it is a file");
}

void LayerDump::add(int layer, const StepInputs& step, Backend& backend, const Activations& x) {
    if (isFinished_) return;
    if (layer == static_cast<int>(files_.size())) {
        names_.push_back(fmt::format("layer-{:03}.f32", layer));
        files_.push_back(std::make_unique<OutputFile>(folder_ + "/" + names_.back()));
    }
    dim_ = x.cols;
    rows_.resize(static_cast<size_t>(step.nTokens) * x.cols);
    backend.download(x, step.nTokens, rows_.data());
    files_[layer]->write(std::as_bytes(std::span(rows_)));
    const std::vector<int32_t>& positions = step.host->positions;
    if (layer == 0) positions_.insert(positions_.end(), positions.begin(), positions.end());
}

void LayerDump::finish() {
    isFinished_ = true;
    for (const auto& file : files_) file->finish();
    OutputFile index(folder_ + "/index.json");
    const std::string text =
        nlohmann::ordered_json(
            {{"rows", positions_.size()}, {"dim", dim_}, {"positions", positions_}, {"layers", names_}})
            .dump() +
        "\n";
    index.write(std::as_bytes(std::span(text)));
    index.finish();
}

}  // namespace dllama
