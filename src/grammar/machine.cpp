#include "grammar/machine.hpp"

#include <algorithm>

#include "base/errors.hpp"

namespace dllama::grammar {
namespace {

constexpr int kNoFrame = -1;
constexpr size_t kMaxStates = 16'384, kMaxRows = 8'192, kMaxPlaces = 1'000'000, kMaxFrames = 500'000;
/// Up to here a list is searched faster than a hash table.
constexpr size_t kFewPlaces = 24;

uint64_t mixed(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    return hash ^ (hash >> 29);
}

uint64_t keyOf(int node, int stack) {
    return static_cast<uint64_t>(static_cast<uint32_t>(node)) << 32 | static_cast<uint32_t>(stack);
}

/// Characters of a class among single bytes; all bytes of longer characters belong to every class.
bool isPlainByte(PlainClass plain, int byte) {
    const bool json = byte >= 0x20 && byte != '"' && byte != '\\';
    const bool angle = byte != '<';
    return plain == PlainClass::Json ? json : plain == PlainClass::Angle ? angle : json && angle;
}

bool readsPlain(const Node& node, PlainClass plain) {
    for (const ByteEdge& edge : node.bytes) {
        for (int byte = edge.first; byte <= edge.last; byte++) {
            if (isPlainByte(plain, byte)) return true;
        }
    }
    return false;
}

}  // namespace

size_t Machine::FrameHash::operator()(const Frame& frame) const {
    return mixed(mixed(static_cast<uint64_t>(frame.call), static_cast<uint64_t>(frame.count)),
                 static_cast<uint64_t>(frame.parent));
}

size_t Machine::StateHash::operator()(int state) const {
    uint64_t hash = machine->accepts(state) ? 1 : 0;
    for (const Place& place : machine->places(state)) hash = mixed(hash, keyOf(place.node, place.stack));
    return hash;
}

bool Machine::StateEqual::operator()(int a, int b) const {
    const auto left = machine->places(a), right = machine->places(b);
    return machine->accepts(a) == machine->accepts(b) &&
           std::equal(left.begin(), left.end(), right.begin(), right.end());
}

Machine::Machine(const Grammar& grammar) : grammar_(grammar), stateIds_(64, StateHash{this}, StateEqual{this}) {
    finishState();  // kDead: no place at all
    visit(grammar_.start(grammar_.root()), kNoFrame);
    start_ = finishState();
}

int Machine::frame(const Frame& frame) {
    const auto [found, isNew] = frameIds_.emplace(frame, static_cast<int>(frames_.size()));
    if (isNew) {
        frames_.push_back(frame);
        depths_.push_back(frame.parent == kNoFrame ? 1 : depths_[static_cast<size_t>(frame.parent)] + 1);
    }
    return found->second;
}

void Machine::enter(int call, int count, int parent) {
    const int start = grammar_.start(grammar_.callEdge(call).rule);
    const int depth = parent == kNoFrame ? 1 : depths_[static_cast<size_t>(parent)] + 1;
    if (grammar_.node(start).height > Grammar::kMaxDepth - depth) return;
    open_.push_back({start, frame({call, count, parent})});
}

void Machine::visit(int node, int stack) {
    open_.push_back({node, stack});
    while (!open_.empty()) {
        const Place place = open_.back();
        open_.pop_back();
        const Node& at = grammar_.node(place.node);
        const int depth = place.stack == kNoFrame ? 0 : depths_[static_cast<size_t>(place.stack)];
        if (at.height > Grammar::kMaxDepth - depth) continue;
        if (seen_.size() < kFewPlaces) {
            if (std::find(seen_.begin(), seen_.end(), place) != seen_.end()) continue;
        } else {
            if (seenMany_.empty()) {
                for (const Place& p : seen_) seenMany_.insert(keyOf(p.node, p.stack));
            }
            if (!seenMany_.insert(keyOf(place.node, place.stack)).second) continue;
        }
        seen_.push_back(place);
        work_++;
        for (int to : at.silent) open_.push_back({to, place.stack});
        for (int call : at.calls) {
            const CallEdge& edge = grammar_.callEdge(call);
            if (edge.min == 0) open_.push_back({edge.to, place.stack});
            enter(call, 0, place.stack);
        }
        if (!at.accepts) continue;
        if (place.stack == kNoFrame) {
            acceptsNow_ = true;
            continue;
        }
        const Frame back = frames_[static_cast<size_t>(place.stack)];
        const CallEdge& edge = grammar_.callEdge(back.call);
        const int count = back.count + 1;
        if (count >= edge.min) open_.push_back({edge.to, back.parent});
        if (count < edge.max)
            enter(back.call, edge.max == Grammar::kUnbounded ? std::min(count, edge.min) : count, back.parent);
    }
}

int Machine::finishState() {
    const size_t first = places_.size();
    for (const Place& place : seen_) {
        const Node& node = grammar_.node(place.node);
        if (!node.bytes.empty() || !node.tokens.empty()) places_.push_back(place);
    }
    std::sort(places_.begin() + static_cast<std::ptrdiff_t>(first), places_.end());
    const int id = static_cast<int>(states_.size());
    states_.push_back({first, static_cast<int>(places_.size() - first), acceptsNow_, -1});
    seen_.clear();
    seenMany_.clear();
    acceptsNow_ = false;
    const auto [found, isNew] = stateIds_.insert(id);
    if (isNew) return id;
    states_.pop_back();
    places_.resize(first);
    return *found;
}

int Machine::step(int state, uint8_t byte) {
    for (size_t i = 0, n = places(state).size(); i < n; i++) {
        const Place place = places(state)[i];
        for (const ByteEdge& edge : grammar_.node(place.node).bytes) {
            if (byte >= edge.first && byte <= edge.last) visit(edge.to, place.stack);
        }
    }
    const int next = finishState();
    State& from = states_[static_cast<size_t>(state)];
    if (from.row < 0) {
        from.row = static_cast<int>(rows_.size());
        rows_.emplace_back().fill(-1);
    }
    rows_[static_cast<size_t>(from.row)][byte] = next;
    return next;
}

int Machine::nextToken(int state, int token) {
    for (size_t i = 0, n = places(state).size(); i < n; i++) {
        const Place place = places(state)[i];
        for (const TokenEdge& edge : grammar_.node(place.node).tokens) {
            if (edge.token == token) visit(edge.to, place.stack);
        }
    }
    return finishState();
}

Machine::Plain Machine::plain(int state) const {
    Plain best;
    for (const Place& place : places(state)) {
        const Node& node = grammar_.node(place.node);
        Plain here;
        if (node.loops != PlainClass::None) {
            here = {node.loops, Grammar::kUnbounded};
        } else if (node.reads != PlainClass::None && place.stack != kNoFrame) {
            const Frame& frame = frames_[static_cast<size_t>(place.stack)];
            const int max = grammar_.callEdge(frame.call).max;
            here = {node.reads, max == Grammar::kUnbounded ? max : max - frame.count};
        }
        if (here.count > best.count) best = here;
    }
    best.only = true;
    for (const Place& place : places(state)) {
        const Node& node = grammar_.node(place.node);
        if (node.loops == PlainClass::None && node.reads != best.plain && readsPlain(node, best.plain))
            best.only = false;
    }
    return best;
}

bool Machine::isFull() const {
    return states_.size() > kMaxStates || rows_.size() > kMaxRows || places_.size() > kMaxPlaces ||
           frames_.size() > kMaxFrames;
}

int Machine::copyFrom(const Machine& other, int state) {
    std::vector<int> chain;
    for (const Place& place : other.places(state)) {
        chain.clear();
        for (int f = place.stack; f != kNoFrame; f = other.frames_[static_cast<size_t>(f)].parent) chain.push_back(f);
        int stack = kNoFrame;
        while (!chain.empty()) {
            const Frame& old = other.frames_[static_cast<size_t>(chain.back())];
            stack = frame({old.call, old.count, stack});
            chain.pop_back();
        }
        seen_.push_back({place.node, stack});
    }
    acceptsNow_ = other.accepts(state);
    return finishState();
}

}  // namespace dllama::grammar
