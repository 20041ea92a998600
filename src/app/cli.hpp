#pragma once

namespace dllama {

/// The program `dllama`: parses the command line, runs the command, and turns every error into one line and exit
/// code 1.
int runCli(int argc, char** argv);

}  // namespace dllama
