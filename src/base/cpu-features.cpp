#include "base/cpu-features.hpp"

#include <cstdlib>
#include <string_view>

#include "base/errors.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace dllama {

namespace {

constexpr Isa kAll[] = {Isa::Amx, Isa::Avx512Vnni, Isa::Avx2, Isa::Neon, Isa::Generic};

#if defined(__x86_64__)
/// __builtin_cpu_supports of clang 14 does not know f16c: leaf 1, ECX bit 29.
bool hasF16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & 1u << 29) != 0;
}

/// AMX tiles and their int8 products: leaf 7, EDX bits 24 and 25. The kernel keeps the tiles' state only for processes
/// that ask for it.
bool mayUseAmx() {
#if defined(__linux__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d >> 24 & 3) != 3) return false;
    constexpr int kArchReqXcompPerm = 0x1023, kTileData = 18;  // asm/prctl.h, since Linux 5.16
    static const bool granted = syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
    return granted;
#else
    return false;
#endif
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
        case Isa::Amx:
            return "amx";
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
        case Isa::Amx:
            return isaSupported(Isa::Avx512Vnni) && mayUseAmx();
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
        throw ConfigError("DLLAMA_FORCE_ISA={}: expected generic, avx2, avx512vnni, amx or neon", forced);
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
    add(isaSupported(Isa::Amx), "amx_int8");
#elif defined(__aarch64__)
    add(true, "neon");
    add(isaSupported(Isa::Neon), "dotprod");
#endif
    return names.empty() ? "no vector extensions known" : names;
}

}  // namespace dllama
