#pragma once

#include <cstdint>
#include <span>

namespace dllama {

/// What the next token of one answer may be: a grammar, a JSON schema, the syntax of a call. The engine asks once for
/// each token, in its own thread; an object belongs to one request.
class TokenConstraint {
  public:
    virtual ~TokenConstraint() = default;
    /// False where any token may come next, the end included (free text before a call): the answer then costs no more
    /// than one without a constraint, and mask() is not asked.
    virtual bool constrains() const { return true; }
    /// Sets the bit of each token that may come next and clears the others: token t is bit t % 32 of bits[t / 32].
    /// `bits` has (vocabulary size + 31) / 32 words, the vocabulary being the model's, which may exceed the
    /// tokenizer's. The bits of tokens that end an answer do not matter: they follow from mayEnd(). Some token or the
    /// end must be possible.
    virtual void mask(std::span<uint32_t> bits) = 0;
    /// The answer goes on with this token, which the mask allowed. Not called with a token that ends the answer.
    virtual void accept(int token) = 0;
    /// The answer may end here: the tokens that end it are allowed.
    virtual bool mayEnd() const = 0;
    /// Nothing can follow any more: the answer ends here, without a token for it. Implies mayEnd().
    virtual bool mustEnd() const = 0;
};

}  // namespace dllama
