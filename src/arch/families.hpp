#pragma once

#include "arch/architecture.hpp"

/// One function a family, each in a file of its own: completes an Architecture whose config is set.
namespace dllama {

void describeLlama(Architecture& arch);
void describeQwen3(Architecture& arch);
void describeGlm(Architecture& arch);
void describeGlm4(Architecture& arch);
void describeGlm4Moe(Architecture& arch);
void describeGlm4MoeLite(Architecture& arch);
void describeChatglm(Architecture& arch);

}  // namespace dllama
