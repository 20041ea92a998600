#include "base/cpu-features.hpp"

#include <cstdlib>
#include <string_view>

#include "base/errors.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace dllama {

namespace {

constexpr Isa kAll[] = {Isa::Avx512Vnni, Isa::Avx2, Isa::Neon, Isa::Generic};

#if defined(__x86_64__)
/// __builtin_cpu_supports of clang 14 does not know f16c: leaf 1, ECX bit 29.
bool hasF16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & 1u << 29) != 0;
}
#endif

}  // namespace

const char* isaName(Isa isa) {
    switch (isa) {
        case Isa::Generic:
            return "generic";
        case Isa::Avx2:
            return "avx2";
        case Isa::Avx512Vnni:
            return "avx512vnni";
        case Isa::Neon:
            return "neon";
    }
    return "?";
}

bool isaSupported(Isa isa) {
    switch (isa) {
        case Isa::Generic:
            return true;
#if defined(__x86_64__)
        case Isa::Avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && hasF16c();
        case Isa::Avx512Vnni:
            return isaSupported(Isa::Avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
        case Isa::Neon:
            return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
        default:
            return false;
    }
}

Isa chooseIsa() {
    if (const char* forced = std::getenv("DLLAMA_FORCE_ISA"); forced && *forced) {
        for (Isa isa : kAll) {
            if (std::string_view(forced) != isaName(isa)) continue;
            if (!isaSupported(isa)) throw ConfigError("DLLAMA_FORCE_ISA={}: this CPU has no {}", forced, forced);
            return isa;
        }
        throw ConfigError("DLLAMA_FORCE_ISA={}: expected generic, avx2, avx512vnni or neon", forced);
    }
    for (Isa isa : kAll)
        if (isaSupported(isa)) return isa;
    return Isa::Generic;
}

std::string cpuFeatureNames() {
    std::string names;
    const auto add = [&](bool has, const char* name) {
        if (has) names += names.empty() ? name : std::string(" ") + name;
    };
#if defined(__x86_64__)
    add(__builtin_cpu_supports("avx2"), "avx2");
    add(__builtin_cpu_supports("avx512f"), "avx512f");
    add(__builtin_cpu_supports("avx512vnni"), "avx512vnni");
#elif defined(__aarch64__)
    add(true, "neon");
    add(isaSupported(Isa::Neon), "dotprod");
#endif
    return names.empty() ? "no vector extensions known" : names;
}

}  // namespace dllama
