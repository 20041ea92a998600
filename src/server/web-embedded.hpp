#pragma once

#include <string_view>
#include <vector>

namespace dllama {

/// A file as the build put it into the program, by its name in the page's folder.
struct EmbeddedFile {
    std::string_view name;
    std::string_view bytes;
};

/// Written by web/CMakeLists.txt.
std::vector<EmbeddedFile> embeddedWebFiles();

}  // namespace dllama
