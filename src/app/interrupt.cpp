#include "app/interrupt.hpp"

#include <csignal>
#include <cstdlib>

namespace dllama {

namespace {

// A signal handler can reach nothing but a global.
volatile std::sig_atomic_t raisedFlag = 0;

}  // namespace

Interrupt::Interrupt() {
    struct sigaction action {};
    action.sa_handler = [](int) {
        // Nobody has seen the first one yet: what is under way takes too long.
        if (raisedFlag) std::_Exit(130);
        raisedFlag = 1;
    };
    sigemptyset(&action.sa_mask);
    action.sa_flags = 0;  // no SA_RESTART: a blocked read returns
    sigaction(SIGINT, &action, nullptr);
    raisedFlag = 0;
}

Interrupt::~Interrupt() {
    std::signal(SIGINT, SIG_DFL);
    raisedFlag = 0;
}

bool interruptRaised() {
    return raisedFlag != 0;
}

void Interrupt::clear() {
    raisedFlag = 0;
}

}  // namespace dllama
