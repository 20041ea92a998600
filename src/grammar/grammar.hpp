#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

/// Grammars of what a model may write, and the masks of the tokens that they allow.
namespace dllama::grammar {

/// Sets of characters that whole tokens are sorted by, so that most of a vocabulary need not be walked.
enum class PlainClass : uint8_t {
    None,
    Json,   ///< what stands for itself in a JSON string: no control character, quote or backslash
    Angle,  ///< any character but <, behind which a mark may begin
    Both,   ///< what is in Json and in Angle
};
inline constexpr int kPlainClasses = 4;

struct ByteEdge {
    uint8_t first, last;  ///< of the range
    int to;
};
struct TokenEdge {
    int token;  ///< a special token of the vocabulary
    int to;
};
/// From here `rule` is passed through between min and max times.
struct CallEdge {
    int to, rule, min, max;
};

struct Node {
    std::vector<ByteEdge> bytes;
    std::vector<TokenEdge> tokens;
    std::vector<int> silent;  ///< followed without reading
    std::vector<int> calls;   ///< indices of call edges
    bool accepts = false;     ///< the rule may end here
    /// Any character of this class leads back to here.
    PlainClass loops = PlainClass::None;
    /// The rule that begins here reads one character, and those of this class among them.
    PlainClass reads = PlainClass::None;
    /// The least depth of calls below this node on a way to the end of its rule.
    int height = 0;
};

/// A recursive transition network over bytes and special tokens: rules are automata whose edges may call rules, with
/// bounds on how often. It is built node by node, then finished, and does not change any more.
class Grammar {
  public:
    static constexpr int kUnbounded = std::numeric_limits<int>::max();
    static constexpr int kMaxNodes = 200'000;
    /// Rules inside each other at most; what needs more is not generated. JSON readers have limits as well.
    static constexpr int kMaxDepth = 128;

    /// `name` says in messages where the rule comes from. Throws ConfigError if the grammar grows too large.
    int addRule(std::string name);
    int start(int rule) const { return rules_[static_cast<size_t>(rule)].start; }
    int addNode();

    void addBytes(int from, int first, int last, int to);
    void addToken(int from, int token, int to);
    void addSilent(int from, int to);
    void addCall(int from, int rule, int to, int min = 1, int max = 1);
    void accept(int node) { at(node).accepts = true; }
    void setLoops(int node, PlainClass plain) { at(node).loops = plain; }
    void setReads(int node, PlainClass plain) { at(node).reads = plain; }

    /// The node behind `text`, behind a byte, behind a rule, or behind what may be left out.
    int text(int from, std::string_view text);
    int byte(int from, char c) { return text(from, std::string_view(&c, 1)); }
    int call(int from, int rule, int min = 1, int max = 1);
    int option(int from, int rule) { return call(from, rule, 0, 1); }

    /// Checks the network that begins with `root`. Throws ConfigError if a rule calls itself before it reads anything,
    /// and if no text is short enough to be in the language.
    void finish(int root);

    int root() const { return root_; }
    const Node& node(int index) const { return nodes_[static_cast<size_t>(index)]; }
    const CallEdge& callEdge(int index) const { return calls_[static_cast<size_t>(index)]; }
    int nNodes() const { return static_cast<int>(nodes_.size()); }

  private:
    struct Rule {
        std::string name;
        int start;
    };

    Node& at(int index) { return nodes_[static_cast<size_t>(index)]; }
    void findHeights();
    void checkRecursion() const;

    std::vector<Node> nodes_;
    std::vector<CallEdge> calls_;
    std::vector<Rule> rules_;
    int root_ = -1;
};

}  // namespace dllama::grammar
