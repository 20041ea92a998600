#include "grammar/grammar.hpp"

#include <algorithm>
#include <utility>

#include "base/errors.hpp"

namespace dllama::grammar {

int Grammar::addRule(std::string name) {
    rules_.push_back({std::move(name), addNode()});
    return static_cast<int>(rules_.size()) - 1;
}

int Grammar::addNode() {
    if (nNodes() == kMaxNodes)
        throw ConfigError("the schema is too large: its grammar has more than {} states", kMaxNodes);
    nodes_.emplace_back();
    return nNodes() - 1;
}

void Grammar::addBytes(int from, int first, int last, int to) {
    at(from).bytes.push_back({static_cast<uint8_t>(first), static_cast<uint8_t>(last), to});
}

void Grammar::addToken(int from, int token, int to) {
    at(from).tokens.push_back({token, to});
}

void Grammar::addSilent(int from, int to) {
    at(from).silent.push_back(to);
}

void Grammar::addCall(int from, int rule, int to, int min, int max) {
    DLLAMA_CHECK(min >= 0 && min <= max);
    at(from).calls.push_back(static_cast<int>(calls_.size()));
    calls_.push_back({to, rule, min, max});
}

int Grammar::text(int from, std::string_view text) {
    for (char c : text) {
        const int to = addNode();
        addBytes(from, static_cast<uint8_t>(c), static_cast<uint8_t>(c), to);
        from = to;
    }
    return from;
}

int Grammar::call(int from, int rule, int min, int max) {
    const int to = addNode();
    addCall(from, rule, to, min, max);
    return to;
}

void Grammar::finish(int root) {
    root_ = root;
    findHeights();
    checkRecursion();
    if (node(start(root)).height > kMaxDepth)
        throw ConfigError("no text fits the schema: its requirements contradict each other or never end");
}

/// Heights in ascending order: a node's is known once those that it follows from are.
void Grammar::findHeights() {
    struct Back {
        int node;  // where the edge begins
        int call;  // -1: it calls nothing
    };
    std::vector<std::vector<Back>> before(nodes_.size());
    std::vector<std::vector<Back>> callers(nodes_.size());  // of the rule that begins with this node
    for (int i = 0; i < nNodes(); i++) {
        const auto edge = [&](int to, int call) { before[static_cast<size_t>(to)].push_back({i, call}); };
        for (const ByteEdge& e : node(i).bytes) edge(e.to, -1);
        for (const TokenEdge& e : node(i).tokens) edge(e.to, -1);
        for (int to : node(i).silent) edge(to, -1);
        for (int c : node(i).calls) {
            edge(callEdge(c).to, c);
            if (callEdge(c).min > 0) callers[static_cast<size_t>(start(callEdge(c).rule))].push_back({i, c});
        }
    }
    constexpr int kUnknown = std::numeric_limits<int>::max();
    for (Node& node : nodes_) node.height = kUnknown;
    std::vector<std::vector<int>> ready(1);
    const auto reach = [&](int index, int height) {
        if (height > kMaxDepth) return;
        if (ready.size() <= static_cast<size_t>(height)) ready.resize(static_cast<size_t>(height) + 1);
        ready[static_cast<size_t>(height)].push_back(index);
    };
    for (int i = 0; i < nNodes(); i++) {
        if (node(i).accepts) reach(i, 0);
    }
    for (size_t height = 0; height < ready.size(); height++) {
        for (size_t k = 0; k < ready[height].size(); k++) {
            const int index = ready[height][k];
            const int level = static_cast<int>(height);
            if (node(index).height != kUnknown) continue;
            at(index).height = level;
            for (const Back& back : before[static_cast<size_t>(index)]) {
                const CallEdge* call = back.call < 0 ? nullptr : &callEdge(back.call);
                const int called = call && call->min > 0 ? node(start(call->rule)).height : -1;
                if (called != kUnknown) reach(back.node, std::max(level, called + 1));
            }
            for (const Back& back : callers[static_cast<size_t>(index)]) {
                const int behind = node(callEdge(back.call).to).height;
                if (behind != kUnknown) reach(back.node, std::max(level + 1, behind));
            }
        }
    }
}

/// No rule may be empty, and none may begin with itself: the stack of calls would grow while nothing is read.
void Grammar::checkRecursion() const {
    std::vector<int> seen(nodes_.size(), -1);
    const auto calledFirst = [&](int rule) {
        std::vector<int> called;
        std::vector<int> open = {start(rule)};
        while (!open.empty()) {
            const int index = open.back();
            open.pop_back();
            if (std::exchange(seen[static_cast<size_t>(index)], rule) == rule) continue;
            DLLAMA_CHECK(!node(index).accepts);
            for (int to : node(index).silent) open.push_back(to);
            for (int c : node(index).calls) {
                called.push_back(callEdge(c).rule);
                if (callEdge(c).min == 0) open.push_back(callEdge(c).to);
            }
        }
        return called;
    };
    enum class Mark : uint8_t { New, Open, Done };
    std::vector<Mark> marks(rules_.size(), Mark::New);
    std::vector<std::pair<int, std::vector<int>>> path;
    const auto enter = [&](int rule) {
        marks[static_cast<size_t>(rule)] = Mark::Open;
        path.emplace_back(rule, calledFirst(rule));
    };
    for (int rule = 0; rule < static_cast<int>(rules_.size()); rule++) {
        if (marks[static_cast<size_t>(rule)] != Mark::New) continue;
        for (enter(rule); !path.empty();) {
            auto& [current, called] = path.back();
            if (called.empty()) {
                marks[static_cast<size_t>(current)] = Mark::Done;
                path.pop_back();
                continue;
            }
            const int next = called.back();
            called.pop_back();
            if (marks[static_cast<size_t>(next)] == Mark::Open)
                throw ConfigError("{}: refers to itself without an end", rules_[static_cast<size_t>(next)].name);
            if (marks[static_cast<size_t>(next)] == Mark::New) enter(next);
        }
    }
}

}  // namespace dllama::grammar
