#include "app/interrupt.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <system_error>

namespace dllama {

namespace {

// A signal handler can reach nothing but globals.
volatile std::sig_atomic_t raisedFlag = 0;
volatile std::sig_atomic_t raisedEvent = -1;

void onSignal(int) {
    // Nobody has seen the first one yet: what is under way takes too long.
    if (raisedFlag) std::_Exit(130);
    raisedFlag = 1;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(raisedEvent, &one, sizeof one);
}

}  // namespace

Interrupt::Interrupt() : event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (event_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    raisedEvent = event_;
    raisedFlag = 0;
    struct sigaction action {};
    action.sa_handler = onSignal;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, nullptr);
}

Interrupt::~Interrupt() {
    std::signal(SIGINT, SIG_DFL);
    raisedFlag = 0;
    ::close(event_);
}

bool interruptRaised() {
    return raisedFlag != 0;
}

void Interrupt::clear() {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t taken = ::read(event_, &count, sizeof count);
    raisedFlag = 0;
}

bool Interrupt::waitForInput(int file) const {
    pollfd files[] = {{file, POLLIN, 0}, {event_, POLLIN, 0}};
    while (!raised()) {
        if (poll(files, 2, -1) > 0 && files[0].revents) return !raised();
    }
    return false;
}

}  // namespace dllama
