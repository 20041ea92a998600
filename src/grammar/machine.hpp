#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "grammar/grammar.hpp"

namespace dllama::grammar {

/// A grammar as an automaton of states that are made when they are first met. A state is the set of the places at which
/// the text so far can be in the grammar, each with its stack of calls; equal sets are one state. Memory grows with
/// what is met: the owner looks at isFull() and goes on with a new machine.
class Machine {
  public:
    static constexpr int kDead = 0;

    explicit Machine(const Grammar& grammar);

    int start() const { return start_; }
    /// The state behind a byte; kDead where the grammar does not allow it.
    int next(int state, uint8_t byte) {
        const int row = states_[static_cast<size_t>(state)].row;
        if (row >= 0) {
            const int known = rows_[static_cast<size_t>(row)][byte];
            if (known >= 0) return known;
        }
        return step(state, byte);
    }
    int nextToken(int state, int token);
    /// The text may end here.
    bool accepts(int state) const { return states_[static_cast<size_t>(state)].accepts; }
    /// The text must end here.
    bool isFinal(int state) const { return accepts(state) && places(state).empty(); }
    /// Calls found(token) for each special token that is allowed.
    template <typename Found>
    void eachToken(int state, const Found& found) const {
        for (const Place& place : places(state)) {
            for (const TokenEdge& edge : grammar_.node(place.node).tokens) found(edge.token);
        }
    }

    /// Tokens of which every one of up to `count` characters of the class is allowed; `only`: and no others that
    /// consist of such characters.
    struct Plain {
        PlainClass plain = PlainClass::None;
        int count = 0;
        bool only = false;
    };
    Plain plain(int state) const;

    bool isFull() const;
    /// Places visited so far: a measure of the work done.
    uint64_t work() const { return work_; }
    /// The same state in another machine of the same grammar.
    int copyFrom(const Machine& other, int state);

  private:
    struct Place {
        int node, stack;
        auto operator<=>(const Place&) const = default;
    };
    /// A call that has not come back: how often its rule has been passed through, and what called around it.
    struct Frame {
        int call, count, parent;
        bool operator==(const Frame&) const = default;
    };
    struct FrameHash {
        size_t operator()(const Frame& frame) const;
    };
    struct State {
        size_t first;
        int nPlaces;
        bool accepts;
        int row;  // -1: nothing known yet
    };
    struct StateHash {
        const Machine* machine;
        size_t operator()(int state) const;
    };
    struct StateEqual {
        const Machine* machine;
        bool operator()(int a, int b) const;
    };

    std::span<const Place> places(int state) const {
        const State& s = states_[static_cast<size_t>(state)];
        return {places_.data() + s.first, static_cast<size_t>(s.nPlaces)};
    }
    int step(int state, uint8_t byte);
    int frame(const Frame& frame);
    /// Adds a place, and all that are reached from it without reading, to the state in the making.
    void visit(int node, int stack);
    void enter(int call, int count, int parent);
    /// The state of the places visited since the last call.
    int finishState();

    const Grammar& grammar_;
    std::vector<State> states_;
    std::vector<Place> places_;
    std::vector<std::array<int32_t, 256>> rows_;
    std::vector<Frame> frames_;
    std::vector<int> depths_;  // of frames
    std::unordered_map<Frame, int, FrameHash> frameIds_;
    std::unordered_set<int, StateHash, StateEqual> stateIds_;
    std::vector<Place> open_, seen_;
    std::unordered_set<uint64_t> seenMany_;
    bool acceptsNow_ = false;
    uint64_t work_ = 0;
    int start_ = 0;
};

}  // namespace dllama::grammar
