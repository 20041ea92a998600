#include <vector>

#include "app/cli.hpp"

/// `dllama-api FLAGS` is `dllama api FLAGS`.
int main(int argc, char** argv) {
    char command[] = "api";
    std::vector<char*> arguments(argv, argv + argc);
    arguments.insert(arguments.begin() + (argc > 0 ? 1 : 0), command);
    arguments.push_back(nullptr);
    return dllama::runCli(static_cast<int>(arguments.size()) - 1, arguments.data());
}
