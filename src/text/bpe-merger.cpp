#include "text/bpe-merger.hpp"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/errors.hpp"
#include "text/utf8.hpp"

namespace dllama {
namespace {

uint64_t pairKey(uint32_t left, uint32_t right) {
    return static_cast<uint64_t>(left) << 32 | right;
}

bool later(const BpeMerger::Scratch::Candidate& a, const BpeMerger::Scratch::Candidate& b) {
    return a.order > b.order;
}

}  // namespace

BpeMerger::BpeMerger(const TokenizerFile& file, const std::vector<bool>& ordinary)
    : byCharacters_(file.kind == TokenizerFile::Kind::ScoredPieces),
      wholeFirst_(!byCharacters_ && (file.ignoreMerges || file.merges.empty())) {
    byteIds_.fill(-1);
    idOf_.reserve(file.vocab.size());
    for (size_t i = 0; i < file.vocab.size(); i++) {
        if (!ordinary[i]) continue;
        const std::string_view text = file.vocab[i];
        const int id = static_cast<int>(i);
        longestToken_ = std::max(longestToken_, text.size());
        // A sentencepiece vocabulary has most ASCII characters twice: as a byte, and behind the bytes as a character.
        if (text.size() == 1 && byteIds_[static_cast<uint8_t>(text[0])] < 0)
            byteIds_[static_cast<uint8_t>(text[0])] = id;
        if (byCharacters_) {
            idOf_[text] = id;
        } else {
            idOf_.emplace(text, id);
        }
    }
    for (size_t byte = 0; byte < byteIds_.size(); byte++) {
        if (byteIds_[byte] < 0) throw FormatError("the vocabulary has no token for the byte {:#04x}", byte);
    }
    merges_.reserve(file.merges.size());
    for (const auto& [left, right] : file.merges) {
        const std::string merged = file.vocab[left] + file.vocab[right];
        const int id = find(merged);
        if (id < 0) throw FormatError("merge {} of tokens {} and {} leads to no token", idOfRank_.size(), left, right);
        merges_.try_emplace(pairKey(left, right), Merge{static_cast<uint32_t>(idOfRank_.size()), id});
        idOfRank_.push_back(id);
    }
    if (byCharacters_) {
        std::vector<size_t> order(file.scores.size());
        std::iota(order.begin(), order.end(), size_t{0});
        // NaN counts as the worst score, so that the order is a strict one.
        const auto better = [&](size_t a, size_t b) {
            const float x = file.scores[a];
            const float y = file.scores[b];
            return y != y ? x == x : x > y;
        };
        std::sort(order.begin(), order.end(), better);
        rankOfId_.resize(order.size());
        uint32_t rank = 0;
        for (size_t i = 0; i < order.size(); i++) {
            if (i > 0 && better(order[i - 1], order[i])) rank++;
            rankOfId_[order[i]] = rank;
        }
    }
}

int BpeMerger::find(std::string_view text) const {
    if (text.size() > longestToken_) return -1;
    const auto found = idOf_.find(text);
    return found == idOf_.end() ? -1 : found->second;
}

uint32_t BpeMerger::rankOf(std::string_view piece, const Scratch& scratch, uint32_t left, uint32_t middle,
                           uint32_t end) const {
    if (!merges_.empty()) {
        const auto found = merges_.find(pairKey(static_cast<uint32_t>(scratch.symbols[left].id),
                                                static_cast<uint32_t>(scratch.symbols[middle].id)));
        return found == merges_.end() ? kNoRank : found->second.rank;
    }
    const int id = find(piece.substr(left, end - left));
    if (id < 0) return kNoRank;
    return byCharacters_ ? rankOfId_[static_cast<size_t>(id)] : static_cast<uint32_t>(id);
}

int BpeMerger::mergedId(std::string_view text, uint32_t rank) const {
    if (byCharacters_) return find(text);
    return merges_.empty() ? static_cast<int>(rank) : idOfRank_[rank];
}

void BpeMerger::addCandidate(std::string_view piece, Scratch& scratch, uint32_t left, uint32_t middle) const {
    const uint32_t end = middle + scratch.symbols[middle].length;
    const uint32_t rank = rankOf(piece, scratch, left, middle, end);
    if (rank != kNoRank) scratch.heap.push_back({static_cast<uint64_t>(rank) << 32 | left, middle, end});
}

void BpeMerger::mergeAll(std::string_view piece, Scratch& scratch) const {
    auto& symbols = scratch.symbols;
    auto& heap = scratch.heap;
    heap.clear();
    for (uint32_t left = 0, middle = symbols[0].length; middle < piece.size();
         left = middle, middle += symbols[middle].length) {
        addCandidate(piece, scratch, left, middle);
    }
    std::make_heap(heap.begin(), heap.end(), later);
    const auto push = [&](uint32_t left, uint32_t middle) {
        const size_t before = heap.size();
        addCandidate(piece, scratch, left, middle);
        if (heap.size() > before) std::push_heap(heap.begin(), heap.end(), later);
    };
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), later);
        const Scratch::Candidate best = heap.back();
        heap.pop_back();
        const auto left = static_cast<uint32_t>(best.order);
        // One of the two has merged with another neighbour since.
        if (symbols[left].length != best.middle - left || symbols[best.middle].length != best.end - best.middle)
            continue;
        symbols[left].length = best.end - left;
        symbols[left].id = mergedId(piece.substr(left, best.end - left), static_cast<uint32_t>(best.order >> 32));
        symbols[best.middle].length = 0;
        if (best.end < piece.size()) {
            symbols[best.end].previous = left;
            push(left, best.end);
        }
        if (left > 0) push(symbols[left].previous, left);
    }
}

void BpeMerger::encode(std::string_view piece, Scratch& scratch, std::vector<int>& ids) const {
    if (piece.empty()) return;
    if (wholeFirst_) {
        if (const int id = find(piece); id >= 0) {
            ids.push_back(id);
            return;
        }
    }
    if (piece.size() >= UINT32_MAX) throw Error("a text of {} bytes is too long for the tokenizer", piece.size());
    auto& symbols = scratch.symbols;
    symbols.assign(piece.size(), {});
    for (uint32_t start = 0, previous = 0; start < piece.size();) {
        Scratch::Symbol& symbol = symbols[start];
        symbol.previous = previous;
        symbol.length = 1;
        if (byCharacters_) {
            symbol.length = static_cast<uint32_t>(utf8Step(piece.substr(start)).length);
            symbol.id = find(piece.substr(start, symbol.length));
        } else {
            symbol.id = byteIds_[static_cast<uint8_t>(piece[start])];
        }
        previous = start;
        start += symbol.length;
    }
    mergeAll(piece, scratch);
    for (size_t start = 0; start < piece.size(); start += symbols[start].length) {
        if (symbols[start].id >= 0) {
            ids.push_back(symbols[start].id);
            continue;
        }
        for (char byte : piece.substr(start, symbols[start].length)) {
            ids.push_back(byteIds_[static_cast<uint8_t>(byte)]);
        }
    }
}

}  // namespace dllama
