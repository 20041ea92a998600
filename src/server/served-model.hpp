#pragma once

#include <functional>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "text/chat-format.hpp"
#include "text/tokenizer.hpp"

namespace dllama {

/// The model that answers. What it refers to outlives the server's use of it.
struct ServedModel {
    Engine& engine;
    const Tokenizer& tokenizer;
    ChatFormat format = ChatFormat::None;
    ChatStops stops = {};              ///< with the ids of the model and the tokenizer
    std::vector<std::string> names{};  ///< the one that is told, then others that clients may use; "*": any
    int64_t created = 0;               ///< seconds since 1970
    int contextLength = 0;
    int vocabSize = 0;             ///< of the model
    SamplingParams sampling = {};  ///< where the client says nothing
    std::string backend{};         ///< cpu (avx512-vnni), cuda ...
};

}  // namespace dllama
