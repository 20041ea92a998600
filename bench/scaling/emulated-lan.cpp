// Hosts as network namespaces, joined by a switch of given rate and delay, until it is told to end.
//   emulated-lan --hosts 4 --rate 1000 --delay 100 --cpu 3
// Prints for each host its address and the file that setns() takes to get there, then "ready"; at the end what the
// switch has done. SIGUSR1 takes the limits away, SIGUSR2 puts them back. Exit status 77: not permitted here.

#include <fmt/format.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <system_error>

#include "lan-host.hpp"
#include "lan-switch.hpp"

using namespace dllama;

namespace {

constexpr int kNotPermitted = 77;

std::atomic<bool> stopped{false};
std::atomic<bool> unlimited{false};

void onSignal(int signal) {
    if (signal == SIGUSR1 || signal == SIGUSR2)
        unlimited = signal == SIGUSR1;
    else
        stopped = true;
}

/// A core of its own, or the right to interrupt those who share it. Both are asked for; neither is owed. (Who spins
/// cannot have a real-time priority: the kernel stops it for 50 ms in each second.)
void takeCore(int cpu) {
    prctl(PR_SET_TIMERSLACK, 1);
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set) != 0) fmt::print(stderr, "cpu {} cannot be had\n", cpu);
        setpriority(PRIO_PROCESS, 0, -20);
    } else {
        sched_param priority{};
        priority.sched_priority = 1;
        sched_setscheduler(0, SCHED_FIFO, &priority);
    }
}

}  // namespace

int main(int argc, char** argv) {
    int nHosts = 2, bufferKb = 512, cpu = -1;
    double mbits = 1000.0, delayUs = 100.0;
    CLI::App app("Network namespaces joined by an emulated switch");
    app.add_option("--hosts", nHosts, "How many")->check(CLI::Range(1, 200))->capture_default_str();
    app.add_option("--rate", mbits, "Mbit/s of each cable and direction")->check(CLI::Range(1.0, 1e6));
    app.add_option("--delay", delayUs, "Microseconds from a host to another")->check(CLI::Range(0.0, 1e6));
    app.add_option("--buffer", bufferKb, "KB that the switch keeps for a busy port")->check(CLI::Range(2, 1 << 20));
    app.add_option("--cpu", cpu, "A core for the switch alone, where it spins; without it, it sleeps and wakes");
    CLI11_PARSE(app, argc, argv);

    for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2}) ::signal(signal, onSignal);
    std::vector<LanHost> hosts;
    try {
        for (int number = 1; number <= nHosts; number++) hosts.push_back(makeLanHost(number));
    } catch (const std::system_error& error) {
        fmt::print(stderr, "{}\n", error.what());
        return kNotPermitted;
    }
    std::vector<int> cables;
    for (int i = 0; i < nHosts; i++) {
        cables.push_back(hosts[i].cable.get());
        fmt::print("10.77.0.{} /proc/{}/fd/{}\n", i + 1, getpid(), hosts[i].network.get());
    }
    fmt::print("ready\n");
    std::fflush(stdout);

    takeCore(cpu);
    LanSwitch lan(cables, {mbits / 8.0, delayUs, static_cast<size_t>(bufferKb) << 10});
    lan.run(stopped, unlimited, cpu >= 0);
    const LanSwitch::Statistics s = lan.statistics();
    fmt::print("{} frames, {} MB, {} lost, late by {} us (p50), {} us (p99)\n", s.frames, s.bytes >> 20, s.lost,
               s.lateP50Us, s.lateP99Us);
    return 0;
}
