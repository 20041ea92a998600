#include "base/json.hpp"

namespace dllama {

namespace {

/// Counts levels and builds nothing; nlohmann's parser itself keeps one bit a level.
struct DepthCheck final : nlohmann::json_sax<nlohmann::json> {
    int depth = 0;

    bool enter() { return ++depth <= kMaxJsonDepth; }
    bool leave() {
        depth--;
        return true;
    }
    bool start_object(std::size_t) override { return enter(); }
    bool end_object() override { return leave(); }
    bool start_array(std::size_t) override { return enter(); }
    bool end_array() override { return leave(); }
    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(number_integer_t) override { return true; }
    bool number_unsigned(number_unsigned_t) override { return true; }
    bool number_float(number_float_t, const string_t&) override { return true; }
    bool string(string_t&) override { return true; }
    bool binary(binary_t&) override { return true; }
    bool key(string_t&) override { return true; }
    bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }
};

}  // namespace

nlohmann::json parseJson(std::string_view text) {
    DepthCheck check;
    if (!nlohmann::json::sax_parse(text, &check)) return nlohmann::json(nlohmann::json::value_t::discarded);
    return nlohmann::json::parse(text, nullptr, false);
}

}  // namespace dllama
