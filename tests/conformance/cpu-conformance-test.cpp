#include "cpu/cpu-backend.hpp"
#include "ops-conformance.hpp"

namespace dllama {
namespace {

std::vector<BackendUnderTest> cpuBackends() {
    std::vector<BackendUnderTest> backends;
    for (const Isa isa : {Isa::Generic, Isa::Avx2, Isa::Avx512Vnni, Isa::Neon}) {
        if (!isaSupported(isa)) continue;
        const auto make = [isa](int nThreads) {
            auto pool = std::make_shared<ThreadPool>(nThreads);
            // The backend keeps its pool alive.
            return std::shared_ptr<Backend>(makeCpuBackend(*pool, isa).release(),
                                            [pool](Backend* backend) { delete backend; });
        };
        backends.push_back({.label = isaName(isa), .make = make, .threadCounts = {1, 2, 3}});
    }
    return backends;
}

INSTANTIATE_TEST_SUITE_P(Cpu, Conformance, testing::ValuesIn(cpuBackends()), backendLabel);

}  // namespace
}  // namespace dllama
