#include "base/json.hpp"

#include <algorithm>

namespace dllama {

namespace {

/// Counts levels and values and builds nothing; nlohmann's parser itself keeps one bit a level.
struct Check final : nlohmann::json_sax<nlohmann::json> {
    explicit Check(JsonLimits limits_) : limits(limits_) {}

    const JsonLimits limits;
    JsonFault fault;
    int depth = 0;
    size_t nValues = 0;

    bool refuse(JsonFault::Kind kind) {
        fault.kind = kind;
        return false;
    }
    bool count() { return ++nValues <= limits.values || refuse(JsonFault::Kind::TooManyValues); }
    bool enter() { return ++depth <= limits.depth ? count() : refuse(JsonFault::Kind::TooDeep); }
    bool leave() {
        depth--;
        return true;
    }
    bool start_object(std::size_t) override { return enter(); }
    bool end_object() override { return leave(); }
    bool start_array(std::size_t) override { return enter(); }
    bool end_array() override { return leave(); }
    bool null() override { return count(); }
    bool boolean(bool) override { return count(); }
    bool number_integer(number_integer_t) override { return count(); }
    bool number_unsigned(number_unsigned_t) override { return count(); }
    bool number_float(number_float_t, const string_t&) override { return count(); }
    bool string(string_t&) override { return count(); }
    bool binary(binary_t&) override { return count(); }
    bool key(string_t&) override { return true; }
    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
        fault.at = position;
        return refuse(JsonFault::Kind::NoJson);
    }
};

}  // namespace

JsonFault checkJson(std::string_view text, JsonLimits limits) {
    Check check(limits);
    nlohmann::json::sax_parse(text, &check);
    check.fault.at = std::min(check.fault.at, text.size());
    return check.fault;
}

nlohmann::json parseJson(std::string_view text) {
    if (checkJson(text, {})) return nlohmann::json(nlohmann::json::value_t::discarded);
    return nlohmann::json::parse(text, nullptr, false);
}

}  // namespace dllama
