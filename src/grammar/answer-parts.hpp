#pragma once

#include <span>
#include <string_view>

#include "grammar/answer-grammars.hpp"
#include "grammar/grammar.hpp"

/// Parts of answers around JSON: marks, thoughts, free text.
namespace dllama::grammar {

/// A mark of the format: its special token where the vocabulary has one, else its text. Gives the node behind.
int addMark(Grammar& grammar, int from, std::string_view mark, const Tokenizer& tokenizer);

/// Any text in which none of `marks` appears, up to marks[0], which is read too. Each mark begins with <, and no other
/// of its characters is one.
int addTextUntil(Grammar& grammar, int from, std::span<const std::string_view> marks, const Tokenizer& tokenizer);

/// Up to two line feeds.
int addLineFeeds(Grammar& grammar, int from);

/// The thoughts of the format, and line feeds behind them. Gives the node at which the answer proper begins.
int addThoughts(Grammar& grammar, int from, ChatFormat format, Thoughts thoughts, const Tokenizer& tokenizer);

}  // namespace dllama::grammar
