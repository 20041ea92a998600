#pragma once

#include <string_view>

namespace dllama {

/// Throws FormatError if the bytes are no sentencepiece model that the library can be trusted with. It reads a model's
/// normalisation table (the charsmap) without looking at its bounds, and 0.1.97 crashes on a damaged one; scores that
/// are no numbers lead it astray as well. Takes time and memory in proportion to the model's length.
///
/// A model is a protobuf message (sentencepiece_model.proto): 1 pieces { 1 text, 2 score }, 3 and 5 normalizer
/// specifications { 2 charsmap }.
void checkSentencePieceModel(std::string_view model);

}  // namespace dllama
