#include "base/system-info.hpp"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

namespace dllama {

int usableCores() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
        std::string siblings;
        // Without the file (some containers) each CPU counts.
        cores.insert(std::getline(file, siblings) ? siblings : fmt::format("cpu{}", cpu));
    }
    return std::max<int>(1, static_cast<int>(cores.size()));
}

size_t availableMemory() {
    std::ifstream file("/proc/meminfo");
    std::string key, unit;
    for (size_t kilobytes = 0; file >> key >> kilobytes;) {
        if (key == "MemAvailable:") return kilobytes * 1024;
        std::getline(file, unit);
    }
    return 0;
}

namespace {

/// CPUs in a list such as "0-3,8-11".
int countCpus(const std::string& list) {
    int n = 0;
    std::istringstream parts(list);
    for (std::string part; std::getline(parts, part, ',');) {
        int first = 0, last = 0;
        const int found = std::sscanf(part.c_str(), "%d-%d", &first, &last);
        n += found == 2 ? last - first + 1 : found;
    }
    return n;
}

std::string firstLine(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

}  // namespace

size_t secondLevelCacheBytes() {
    const std::string cpu = "/sys/devices/system/cpu/cpu0/";
    for (int i = 0; i < 8; i++) {
        const std::string cache = fmt::format("{}cache/index{}/", cpu, i);
        if (firstLine(cache + "level") != "2") continue;
        size_t size = 0;
        char unit = 'K';
        if (std::sscanf(firstLine(cache + "size").c_str(), "%zu%c", &size, &unit) < 1) break;
        size <<= unit == 'M' ? 20 : 10;
        const int threadsOfCore = std::max(1, countCpus(firstLine(cpu + "topology/thread_siblings_list")));
        const int sharing = std::max(1, countCpus(firstLine(cache + "shared_cpu_list")));
        return size * threadsOfCore / std::max(sharing, threadsOfCore);
    }
#if defined(_SC_LEVEL2_CACHE_SIZE)
    if (const long size = sysconf(_SC_LEVEL2_CACHE_SIZE); size > 0) return static_cast<size_t>(size);
#endif
    return size_t{256} << 10;
}

std::string programDirectory() {
    std::error_code error;
    const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
    return error ? "." : program.parent_path().string();
}

}  // namespace dllama
