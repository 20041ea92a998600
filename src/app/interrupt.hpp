#pragma once

namespace dllama {

/// True after Ctrl-C while an Interrupt lives.
bool interruptRaised();

/// Ctrl-C (SIGINT) as a flag, while an object of this class lives: a step in progress ends, then the flag is seen. A
/// second one before that ends the program at once. At most one object at a time.
class Interrupt {
  public:
    Interrupt();
    ~Interrupt();
    Interrupt(const Interrupt&) = delete;
    Interrupt& operator=(const Interrupt&) = delete;
    bool raised() const { return interruptRaised(); }
    void clear();

    /// Waits until `file` can be read or is at its end; false if Ctrl-C was pressed, whichever thread took the signal.
    bool waitForInput(int file) const;

  private:
    int event_;  // readable while the flag is set: a signal just before the wait is not lost
};

}  // namespace dllama
