#include "server/web-files.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>

#include "server/web-embedded.hpp"

namespace dllama {

namespace {

std::string_view contentType(std::string_view path) {
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kTypes{{
        {".html", "text/html; charset=utf-8"},
        {".css", "text/css; charset=utf-8"},
        {".js", "text/javascript; charset=utf-8"},
        {".svg", "image/svg+xml"},
        {".txt", "text/plain; charset=utf-8"},
    }};
    for (const auto& [ending, type] : kTypes)
        if (path.ends_with(ending)) return type;
    return "application/octet-stream";
}

std::vector<WebFile> makeFiles() {
    std::vector<WebFile> files;
    for (const EmbeddedFile& file : embeddedWebFiles()) {
        const std::string path = file.name == "index.html" ? "/" : fmt::format("/web/{}", file.name);
        const auto hash = static_cast<uint64_t>(XXH3_64bits(file.bytes.data(), file.bytes.size()));
        files.push_back({path, std::string(contentType(file.name)), file.bytes, fmt::format("\"{:016x}\"", hash)});
    }
    std::sort(files.begin(), files.end(), [](const WebFile& a, const WebFile& b) { return a.path < b.path; });
    return files;
}

}  // namespace

const std::vector<WebFile>& webFiles() {
    static const std::vector<WebFile> files = makeFiles();
    return files;
}

const WebFile* webFile(std::string_view path) {
    const auto& files = webFiles();
    const auto found = std::lower_bound(files.begin(), files.end(), path,
                                        [](const WebFile& a, std::string_view b) { return a.path < b; });
    return found != files.end() && found->path == path ? &*found : nullptr;
}

std::span<const std::pair<std::string_view, std::string_view>> webHeaders() {
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kHeaders{{
        {"Content-Security-Policy",
         "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
         "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
         "trusted-types dompurify"},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
        {"Cross-Origin-Opener-Policy", "same-origin"},
        // Asked for again each time, and sent again only when it has changed.
        {"Cache-Control", "no-cache"},
    }};
    return kHeaders;
}

bool isUnchanged(const WebFile& file, std::string_view ifNoneMatch) {
    // A list of tags, each perhaps weak, or a star. Tags of ours hold no commas.
    while (!ifNoneMatch.empty()) {
        const size_t comma = std::min(ifNoneMatch.find(','), ifNoneMatch.size());
        std::string_view tag = ifNoneMatch.substr(0, comma);
        ifNoneMatch.remove_prefix(std::min(comma + 1, ifNoneMatch.size()));
        tag.remove_prefix(std::min(tag.find_first_not_of(" \t"), tag.size()));
        tag = tag.substr(0, tag.find_last_not_of(" \t") + 1);
        if (tag.starts_with("W/")) tag.remove_prefix(2);
        if (tag == "*" || tag == file.etag) return true;
    }
    return false;
}

}  // namespace dllama
