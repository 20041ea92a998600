#pragma once

#include <chrono>

/// How long root and workers wait for each other before a session's steps (docs/protocol.md, "Limits of time").
namespace dllama {

/// A worker that runs is there at once; one that is frozen or cut off is given up after this.
constexpr std::chrono::milliseconds kDialLimit{2000};
constexpr std::chrono::seconds kSendLimit{60};
/// A worker whose turn it is, and which has nothing to wait for, answers within this time.
constexpr std::chrono::seconds kAnswerLimit{5};
constexpr std::chrono::seconds kSetupLimit{15};
/// The root reads all that a worker holds from its own file before it takes it, from a slow disk maybe.
constexpr std::chrono::minutes kVerdictLimit{60};

}  // namespace dllama
