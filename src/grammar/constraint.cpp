#include "grammar/constraint.hpp"

#include <algorithm>
#include <utility>

#include "base/errors.hpp"

namespace dllama::grammar {
namespace {

/// Masks kept of one grammar: 19 KB each for a vocabulary of 151,552.
constexpr size_t kMaxMasks = 512;
/// Places that a mask may visit before it is left as it is: some milliseconds. Only schemas made to be slow need more.
constexpr uint64_t kMaxWork = 400'000;

}  // namespace

Automaton::Automaton(Grammar grammar, std::shared_ptr<const Vocabulary> vocabulary)
    : grammar_(std::move(grammar)), vocabulary_(std::move(vocabulary)), machine_(std::make_shared<Machine>(grammar_)) {
    size_t depth = 0;
    for (const TokenTree::Node& node : vocabulary_->all().nodes) depth = std::max<size_t>(depth, node.depth);
    path_.resize(depth + 1);
}

Automaton::Position Automaton::start() {
    const std::lock_guard lock(mutex_);
    return {machine_, machine_->start()};
}

Automaton::End Automaton::end(const Position& position) {
    const std::lock_guard lock(mutex_);
    return {position.machine->accepts(position.state), position.machine->isFinal(position.state)};
}

void Automaton::settle(Position& position) {
    if (machine_->isFull()) {
        machine_ = std::make_shared<Machine>(grammar_);
        masks_.clear();
    }
    if (position.machine == machine_) return;
    position.state = machine_->copyFrom(*position.machine, position.state);
    position.machine = machine_;
}

void Automaton::mask(Position& position, bool textStart, std::span<uint32_t> allowed) {
    const std::lock_guard lock(mutex_);
    settle(position);
    const size_t nWords = (static_cast<size_t>(vocabulary_->size()) + 31) / 32;
    DLLAMA_CHECK(allowed.size() >= nWords);
    std::fill(allowed.begin() + static_cast<std::ptrdiff_t>(nWords), allowed.end(), 0);
    allowed = allowed.first(nWords);
    if (textStart && vocabulary_->addsBlank()) {
        std::fill(allowed.begin(), allowed.end(), 0);
        computeStartMask(position.state, allowed);
        return;
    }
    if (const auto found = masks_.find(position.state); found != masks_.end()) {
        std::copy(found->second.begin(), found->second.end(), allowed.begin());
        return;
    }
    computeMask(position.state, allowed);
    if (masks_.size() == kMaxMasks) masks_.clear();
    masks_.emplace(position.state, TokenSet(allowed.begin(), allowed.end()));
}

void Automaton::computeMask(int state, std::span<uint32_t> allowed) {
    workLimit_ = machine_->work() + kMaxWork;
    const Machine::Plain plain = machine_->plain(state);
    const auto base = vocabulary_->plain(plain.plain, plain.count);
    if (base.empty()) {
        std::fill(allowed.begin(), allowed.end(), 0);
    } else {
        std::copy(base.begin(), base.end(), allowed.begin());
    }
    const bool known = plain.count >= vocabulary_->maxCount(plain.plain) || plain.only;
    walk(base.empty() || !known ? vocabulary_->all() : vocabulary_->others(plain.plain), state, allowed);
    finishMask(state, allowed);
}

/// As if the text had begun one byte later for tokens that begin with a blank.
void Automaton::computeStartMask(int state, std::span<uint32_t> allowed) {
    workLimit_ = machine_->work() + kMaxWork;
    const TokenTree& tree = vocabulary_->all();
    for (size_t i = 0; i < tree.nodes.size(); i = tree.nodes[i].next) {
        const TokenTree::Node& node = tree.nodes[i];
        const int next = node.byte == ' ' ? state : machine_->next(state, node.byte);
        if (next == Machine::kDead) continue;
        if (node.token >= 0) addToken(allowed, node.token);
        path_[1] = next;
        walkSubtree(tree, i + 1, node.next, state, allowed);
    }
    finishMask(state, allowed);
}

void Automaton::finishMask(int state, std::span<uint32_t> allowed) {
    for (const auto& [one, other] : vocabulary_->twins()) {
        if (allowed[static_cast<size_t>(one) / 32] >> (one % 32) & 1) addToken(allowed, other);
    }
    machine_->eachToken(state, [&](int token) { addToken(allowed, token); });
}

void Automaton::walk(const TokenTree& tree, int state, std::span<uint32_t> allowed) {
    walkSubtree(tree, 0, tree.nodes.size(), state, allowed);
    if (machine_->work() < workLimit_) return;
    // Not all has been examined: with the single bytes there is a way on to every text of the grammar.
    const TokenTree& all = vocabulary_->all();
    for (size_t i = 0; i < all.nodes.size(); i = all.nodes[i].next) {
        const TokenTree::Node& node = all.nodes[i];
        if (node.token >= 0 && machine_->next(state, node.byte) != Machine::kDead) addToken(allowed, node.token);
    }
}

void Automaton::walkSubtree(const TokenTree& tree, size_t first, size_t end, int state, std::span<uint32_t> allowed) {
    path_[0] = state;
    const TokenTree::Node* nodes = tree.nodes.data();
    for (size_t i = first; i < end;) {
        const TokenTree::Node node = nodes[i];
        const int next = machine_->next(path_[node.depth - 1u], node.byte);
        if (next == Machine::kDead) {
            i = node.next;
            continue;
        }
        path_[node.depth] = next;
        if (node.token >= 0) addToken(allowed, node.token);
        i++;
        if (machine_->work() >= workLimit_) return;
    }
}

void Automaton::accept(Position& position, const Tokenizer& tokenizer, int token, bool textStart) {
    const std::lock_guard lock(mutex_);
    settle(position);
    int state = position.state;
    if (tokenizer.isSpecial(token)) {
        state = machine_->nextToken(state, token);
    } else {
        std::string_view bytes = tokenizer.piece(token);
        if (bytes.empty()) state = Machine::kDead;
        if (textStart && vocabulary_->addsBlank() && bytes.starts_with(' ')) bytes.remove_prefix(1);
        for (char c : bytes) state = machine_->next(state, static_cast<uint8_t>(c));
    }
    if (state == Machine::kDead) throw Error("token {} does not fit the answer's grammar", token);
    position.state = state;
}

GrammarConstraint::GrammarConstraint(std::shared_ptr<Automaton> automaton, const Tokenizer& tokenizer, bool textStart)
    : automaton_(std::move(automaton)), tokenizer_(tokenizer), position_(automaton_->start()), textStart_(textStart) {}

void GrammarConstraint::mask(std::span<uint32_t> bits) {
    automaton_->mask(position_, textStart_, bits);
}

void GrammarConstraint::accept(int token) {
    automaton_->accept(position_, tokenizer_, token, textStart_);
    textStart_ = tokenizer_.isSpecial(token);
}

bool GrammarConstraint::mayEnd() const {
    return automaton_->end(position_).may;
}

bool GrammarConstraint::mustEnd() const {
    return automaton_->end(position_).must;
}

}  // namespace dllama::grammar
