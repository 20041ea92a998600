#pragma once

#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace dllama::test {

/// One place of a JSON document changed: a value replaced by one that programs stumble over, a number moved a little,
/// an element removed, repeated or put elsewhere. Text that is no JSON document comes back as it is. A fuzzer that
/// knows bytes only hardly ever gets past the parser.
inline std::string mutateJson(std::string_view text, unsigned seed) {
    using nlohmann::json;
    json document = json::parse(text, nullptr, false);
    if (document.is_discarded()) return std::string(text);
    std::mt19937 random(seed);
    std::vector<json*> places = {&document};
    for (size_t i = 0; i < places.size() && places.size() < 4096; i++)
        if (places[i]->is_structured())
            for (json& element : *places[i]) places.push_back(&element);
    json& place = *places[random() % places.size()];
    static const std::vector<json> kOdd = {nullptr,
                                           true,
                                           0,
                                           1,
                                           -1,
                                           31,
                                           33,
                                           65536,
                                           131072,
                                           1 << 24,
                                           1 << 30,
                                           2147483647,
                                           int64_t{1} << 31,
                                           int64_t{1} << 32,
                                           INT64_MIN,
                                           UINT64_MAX,
                                           1e308,
                                           -1e-308,
                                           0.5,
                                           "",
                                           "ffffffffffffffff",
                                           "0",
                                           std::string(300, 'x'),
                                           "\u001b[2J",
                                           json::array(),
                                           json::object(),
                                           json::array({json::array({json::array()})})};
    switch (random() % 5) {
        case 0:
            place = kOdd[random() % kOdd.size()];
            break;
        case 1:
            if (place.is_number_integer())
                place = static_cast<int64_t>(place.get<uint64_t>() + random() % 7 - 3);
            else if (place.is_string() && !place.get_ref<std::string&>().empty())
                place.get_ref<std::string&>().pop_back();
            break;
        case 2:
            if (place.is_structured() && !place.empty()) {
                auto element = place.begin();
                std::advance(element, random() % place.size());
                place.erase(element);
            }
            break;
        case 3:
            if (place.is_array() && !place.empty()) place.push_back(json(place[random() % place.size()]));
            break;
        default:
            place = json(*places[random() % places.size()]);
    }
    return document.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace dllama::test
