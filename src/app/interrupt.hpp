#pragma once

namespace dllama {

/// True after Ctrl-C while an Interrupt lives.
bool interruptRaised();

/// Ctrl-C (SIGINT) as a flag, while an object of this class lives: a step in progress ends, then the flag is seen. A
/// second one before that ends the program at once. A read from the terminal is interrupted. At most one object at a
/// time.
class Interrupt {
  public:
    Interrupt();
    ~Interrupt();
    Interrupt(const Interrupt&) = delete;
    Interrupt& operator=(const Interrupt&) = delete;
    bool raised() const { return interruptRaised(); }
    void clear();
};

}  // namespace dllama
