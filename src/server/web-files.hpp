#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dllama {

/// A file of the web page, part of the program.
struct WebFile {
    std::string path;         // of the request
    std::string contentType;  // with its charset
    std::string_view bytes;
    std::string etag;  // a strong validator with its quotes; follows the content
};

/// All files of the page, in the order of their paths. Safe to call from several threads.
const std::vector<WebFile>& webFiles();

/// The file at a request's path without its query: "/" and "/web/..."; null if there is none.
const WebFile* webFile(std::string_view path);

/// Names and values that every answer with a file of the page carries. The page may load, connect to and run nothing
/// but what its own server sends, and text becomes HTML only through DOMPurify (Trusted Types).
std::span<const std::pair<std::string_view, std::string_view>> webHeaders();

/// Whether a request that holds `ifNoneMatch` (the header's value; empty: it has none) has this file already, so that
/// 304 is the answer (RFC 9110, section 13.1.2).
bool isUnchanged(const WebFile& file, std::string_view ifNoneMatch);

}  // namespace dllama
