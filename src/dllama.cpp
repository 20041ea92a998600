#include "app/cli.hpp"

int main(int argc, char** argv) {
    return dllama::runCli(argc, argv);
}
