#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "local-cluster.hpp"

namespace dllama::test {

/// This test program once more, as a process of its own that can be killed and frozen. What it prints is read line by
/// line.
class ChildProcess {
  public:
    explicit ChildProcess(std::vector<std::string> arguments) {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) throw Error("pipe2 failed");
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
        arguments.insert(arguments.begin(), "/proc/self/exe");
        std::vector<char*> argv;
        for (std::string& argument : arguments) argv.push_back(argument.data());
        argv.push_back(nullptr);
        const int failure = ::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
        posix_spawn_file_actions_destroy(&actions);
        ::close(ends[1]);
        output_ = ends[0];
        if (failure != 0) throw Error("posix_spawn failed");
    }
    ChildProcess(const ChildProcess&) = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;
    ~ChildProcess() {
        kill();
        ::close(output_);
    }

    pid_t pid() const { return pid_; }
    void signal(int number) const { ::kill(pid_, number); }
    /// SIGSTOP; returns when all its threads stand still, which takes a while on a machine with much to do.
    void stop() const {
        ::kill(pid_, SIGSTOP);
        ::waitpid(pid_, nullptr, WUNTRACED);
    }
    /// For the process itself: ends it when the test program is gone, whichever way that ended.
    static void endWithParent() {
        std::thread([parent = ::getppid()] {
            while (::getppid() == parent) std::this_thread::sleep_for(std::chrono::seconds(1));
            ::_exit(1);
        }).detach();
    }
    /// SIGKILL; returns when it is gone, with the signal that ended it: another one than SIGKILL if it was faster.
    int kill() {
        if (pid_ <= 0) return 0;
        ::kill(pid_, SIGKILL);
        int status = 0;
        ::waitpid(pid_, &status, 0);
        pid_ = 0;
        return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    }
    /// The next line, or "" after 20 s or at the end.
    std::string readLine() {
        std::string line;
        for (char c = 0;;) {
            pollfd waiting{output_, POLLIN, 0};
            if (::poll(&waiting, 1, 20'000) <= 0 || ::read(output_, &c, 1) <= 0) return "";
            if (c == '\n') return line;
            line += c;
        }
    }
    size_t kilobytes() const { return kilobytesOf(pid_); }
    size_t nOpenFiles() const { return nOpenFilesOf(pid_); }

    /// Resident memory of any process.
    /// How much a program may grow without holding on to anything. Address sanitizers keep what was freed.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(DLLAMA_SANITIZED)
    static constexpr size_t kGrowthKilobytes = 512 * 1024;
#else
    static constexpr size_t kGrowthKilobytes = 4096;
#endif
    static size_t kilobytesOf(pid_t pid) {
        std::ifstream status(fmt::format("/proc/{}/status", pid));
        for (std::string word; status >> word;)
            if (word == "VmRSS:") {
                size_t value = 0;
                status >> value;
                return value;
            }
        return 0;
    }
    static size_t nOpenFilesOf(pid_t pid) {
        const std::filesystem::directory_iterator files(fmt::format("/proc/{}/fd", pid));
        return static_cast<size_t>(std::distance(begin(files), end(files)));
    }

  private:
    pid_t pid_ = 0;
    int output_ = -1;
};

/// A worker as a process, on a port that it keeps when it is started again.
class WorkerProcess {
  public:
    explicit WorkerProcess(std::string secret, uint64_t memoryLimit = 0, std::string cacheDir = "")
        : secret_(std::move(secret)), memoryLimit_(memoryLimit), cacheDir_(std::move(cacheDir)) {
        start();
    }
    void start() {
        process_ = std::make_unique<ChildProcess>(std::vector<std::string>{"--worker", std::to_string(port_), secret_,
                                                                           std::to_string(memoryLimit_), cacheDir_});
        const std::string line = process_->readLine();
        port_ = line.empty() ? 0 : std::stoi(line);
        if (port_ == 0) throw Error("the worker process did not start");
    }
    Address address() const { return {"127.0.0.1", port_}; }
    ChildProcess& process() { return *process_; }

    /// What such a process does.
    static int main(char** argv) {
        ChildProcess::endWithParent();
        WorkerOptions options;
        options.address = {"127.0.0.1", std::stoi(argv[2])};
        if (argv[3][0] != '\0') options.secret = Secret::parse(argv[3], "test");
        options.memoryLimit = std::stoull(argv[4]);
        options.cacheDir = argv[5];
        options.makeBackend = cpuBackend;
        options.log = [](const std::string&) {};
        Worker worker(std::move(options));
        fmt::print("{}\n", worker.port());
        std::fflush(stdout);
        worker.run();
        return 0;
    }

  private:
    std::string secret_;
    uint64_t memoryLimit_ = 0;
    std::string cacheDir_;
    int port_ = 0;
    std::unique_ptr<ChildProcess> process_;
};

}  // namespace dllama::test
