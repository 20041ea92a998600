#include "server/web-files.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <regex>
#include <set>

using namespace dllama;

namespace {

/// All matches of the pattern's first group.
std::vector<std::string> findAll(std::string_view text, const std::string& pattern) {
    const std::string copy(text);
    const std::regex regex(pattern);
    std::vector<std::string> found;
    for (std::sregex_iterator it(copy.begin(), copy.end(), regex), end; it != end; ++it) found.push_back((*it)[1]);
    return found;
}

bool isOurs(const WebFile& file) {
    return !file.path.starts_with("/web/lib/");
}

std::string header(std::string_view name) {
    for (const auto& [key, value] : webHeaders())
        if (key == name) return std::string(value);
    return "";
}

}  // namespace

TEST(WebFiles, ServesThePageAndItsParts) {
    const WebFile* page = webFile("/");
    ASSERT_NE(page, nullptr);
    EXPECT_EQ(page->contentType, "text/html; charset=utf-8");
    EXPECT_TRUE(page->bytes.starts_with("<!doctype html>"));
    EXPECT_TRUE(page->bytes.ends_with("</html>\n"));
    ASSERT_NE(webFile("/web/app.js"), nullptr);
    EXPECT_EQ(webFile("/web/app.js")->contentType, "text/javascript; charset=utf-8");
    EXPECT_EQ(webFile("/web/style.css")->contentType, "text/css; charset=utf-8");
    EXPECT_EQ(webFile("/web/icon.svg")->contentType, "image/svg+xml");
    EXPECT_EQ(webFile("/web/lib/node-marked.txt")->contentType, "text/plain; charset=utf-8");
}

TEST(WebFiles, KnowsNoOtherPath) {
    for (const char* path : {"", "/web", "/web/", "/web/index.html", "/web/../etc/passwd", "//", "/web/App.js",
                             "/web/app.js/", "/web/CMakeLists.txt", "/web/app.js?", "web/app.js"})
        EXPECT_EQ(webFile(path), nullptr) << path;
    EXPECT_EQ(webFile(std::string_view("/web/app.js\0", 12)), nullptr);
}

TEST(WebFiles, EveryReferenceIsThere) {
    for (const WebFile& file : webFiles()) {
        if (!isOurs(file)) continue;
        for (const std::string& path : findAll(file.bytes, "[\"'](/web/[a-z./-]+\\.[a-z]+)[\"']"))
            EXPECT_NE(webFile(path), nullptr) << file.path << " names " << path;
        for (const std::string& name : findAll(file.bytes, "from \"\\./([a-z./-]+)\""))
            EXPECT_NE(webFile("/web/" + name), nullptr) << file.path << " imports " << name;
    }
}

TEST(WebFiles, NothingIsReadFromElsewhere) {
    for (const WebFile& file : webFiles()) {
        if (!isOurs(file)) continue;
        for (const std::string& address : findAll(file.bytes, "(https?://[^\"' )]*)"))
            EXPECT_EQ(address, "http://www.w3.org/2000/svg") << file.path;
        EXPECT_TRUE(findAll(file.bytes, "(innerHTML|outerHTML|insertAdjacentHTML|document\\.write|eval\\()").empty())
            << file.path;
    }
    // The policy forbids these, so they would silently not work.
    const std::string_view page = webFile("/")->bytes;
    EXPECT_TRUE(findAll(page, "( style=| on[a-z]+=|<style|<script>)").empty());
}

TEST(WebFiles, PolicyIsStrict) {
    const std::string policy = header("Content-Security-Policy");
    for (const char* part : {"default-src 'none'", "script-src 'self';", "style-src 'self';", "connect-src 'self';",
                             "img-src 'self' data:;", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'",
                             "require-trusted-types-for 'script'"})
        EXPECT_NE(policy.find(part), std::string::npos) << part;
    EXPECT_EQ(policy.find("unsafe"), std::string::npos);
    EXPECT_EQ(policy.find('*'), std::string::npos);
    EXPECT_EQ(header("X-Content-Type-Options"), "nosniff");
    EXPECT_EQ(header("Referrer-Policy"), "no-referrer");
}

TEST(WebFiles, TagsTellFilesApart) {
    std::set<std::string> tags;
    for (const WebFile& file : webFiles()) {
        EXPECT_FALSE(file.bytes.empty()) << file.path;
        EXPECT_EQ(file.etag.size(), 18u);
        tags.insert(file.etag);
    }
    EXPECT_EQ(tags.size(), webFiles().size());
}

TEST(WebFiles, UnchangedFilesAreNotSentAgain) {
    const WebFile& file = *webFile("/");
    EXPECT_TRUE(isUnchanged(file, file.etag));
    EXPECT_TRUE(isUnchanged(file, "W/" + file.etag));
    EXPECT_TRUE(isUnchanged(file, "\"a\", W/\"b\" ,\t" + file.etag + " "));
    EXPECT_TRUE(isUnchanged(file, "*"));
    for (const std::string& other : {std::string(), std::string(" "), std::string(",,"), std::string("\"a\""),
                                     file.etag.substr(0, 17), file.etag + "x", std::string(100'000, ',')})
        EXPECT_FALSE(isUnchanged(file, other)) << other.substr(0, 40);
}
