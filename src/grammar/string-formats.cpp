#include "grammar/string-formats.hpp"

#include <algorithm>
#include <iterator>

/// Where a format is wider than what is written here (leap days, years before 1000, unusual addresses), a part of it
/// is described: what is generated is always of the format.
namespace dllama::grammar {
namespace {

#define DLLAMA_DATE                                                                              \
    "[12][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|" \
    "02-(0[1-9]|1[0-9]|2[0-8]))"
#define DLLAMA_TIME "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
#define DLLAMA_BYTE "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define DLLAMA_LABEL "[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
#define DLLAMA_GROUP "[0-9a-fA-F]{1,4}"

constexpr struct {
    std::string_view name, pattern;
} kFormats[] = {
    {"date", "^" DLLAMA_DATE "$"},
    {"time", "^" DLLAMA_TIME "$"},
    {"date-time", "^" DLLAMA_DATE "T" DLLAMA_TIME "$"},
    {"duration",
     "^P([0-9]{1,4}W|[0-9]{1,4}Y([0-9]{1,4}M)?([0-9]{1,4}D)?|[0-9]{1,4}M([0-9]{1,4}D)?|"
     "([0-9]{1,4}D)?T([0-9]{1,4}H([0-9]{1,4}M)?([0-9]{1,4}S)?|[0-9]{1,4}M([0-9]{1,4}S)?|[0-9]{1,4}S)|[0-9]{1,4}D)$"},
    {"uuid", "^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$"},
    {"email", "^[A-Za-z0-9_+-]{1,30}(\\.[A-Za-z0-9_+-]{1,30})?@(" DLLAMA_LABEL "\\.){1,3}[A-Za-z]{2,12}$"},
    {"hostname", "^" DLLAMA_LABEL "(\\." DLLAMA_LABEL "){0,5}$"},
    {"ipv4", "^(" DLLAMA_BYTE "\\.){3}" DLLAMA_BYTE "$"},
    {"ipv6", "^((" DLLAMA_GROUP ":){7}" DLLAMA_GROUP "|::(" DLLAMA_GROUP "(:" DLLAMA_GROUP "){0,5})?|" DLLAMA_GROUP
             "::(" DLLAMA_GROUP "(:" DLLAMA_GROUP "){0,4})?|" DLLAMA_GROUP ":" DLLAMA_GROUP "::(" DLLAMA_GROUP
             "(:" DLLAMA_GROUP "){0,3})?)$"},
    {"uri", "^(https?|ftp)://(" DLLAMA_LABEL "\\.){1,4}[A-Za-z]{2,12}(:[1-9][0-9]{0,3})?"
            "(/([A-Za-z0-9_.~!$&'()*+,;=:@-]|%[0-9A-F]{2})*)*(\\?([A-Za-z0-9_.~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*)?"
            "(#([A-Za-z0-9_.~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*)?$"},
};

/// Defined by JSON Schema and not described above.
constexpr std::string_view kOthers[] = {
    "idn-email",    "idn-hostname",          "iri",   "iri-reference", "uri-reference",
    "uri-template", "relative-json-pointer", "regex", "json-pointer"};

}  // namespace

std::string_view patternOfFormat(std::string_view format) {
    for (const auto& [name, pattern] : kFormats) {
        if (name == format) return pattern;
    }
    return {};
}

bool isStandardFormat(std::string_view format) {
    return !patternOfFormat(format).empty() ||
           std::find(std::begin(kOthers), std::end(kOthers), format) != std::end(kOthers);
}

}  // namespace dllama::grammar
