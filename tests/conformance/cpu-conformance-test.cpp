#include <fmt/format.h>

#include <cstring>

#include "cpu/cpu-backend.hpp"
#include "cpu/cpu-matrix.hpp"
#include "ops-conformance.hpp"

namespace dllama {
namespace {

std::vector<BackendUnderTest> cpuBackends() {
    std::vector<BackendUnderTest> backends;
    for (const Isa isa : {Isa::Generic, Isa::Avx2, Isa::Avx512Vnni, Isa::Amx, Isa::Neon}) {
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

/// Numbers of inputs that fill tiles, leave a part of one, and exceed a pass; columns that fill pieces or not.
TEST(CpuKernels, AmxGivesTheBitsOfAvx512Vnni) {
    if (!isaSupported(Isa::Amx)) GTEST_SKIP() << "this CPU has no AMX";
    constexpr int kRows = 48, kAllInputs = 160;
    std::mt19937 random(1);
    for (const DType type : quantizedTypes()) {
        for (const int cols : {64, 512, 544, 2048}) {
            MemorySource source;
            std::vector<float> values(static_cast<size_t>(kRows) * cols);
            for (float& value : values) value = std::normal_distribution<float>()(random);
            source.add("w", type, kRows, cols, values);
            const auto matrix = loadCpuMatrix(source, {{source.whole("w")}, {}}, 16);
            std::vector<InputBlock> blocks(static_cast<size_t>(kAllInputs) * cols / kBlockValues);
            for (InputBlock& block : blocks) {
                block.sum = 0;
                for (int8_t& value : block.values) block.sum += value = static_cast<int8_t>(random() % 255) - 127;
                block.scale = static_cast<float>(random() % 1000) / 500;
            }
            const InputView x{nullptr, blocks.data(), cols};
            for (const int nInputs : {1, 5, 16, 20, 37, 64, 150}) {
                for (const bool inOrder : {true, false}) {
                    SCOPED_TRACE(fmt::format("{}, {} columns, {} inputs", dtypeName(type), cols, nInputs));
                    std::vector<int32_t> rows;
                    for (int i = 0; i < nInputs; i++)
                        rows.push_back(inOrder ? i : static_cast<int32_t>(random() % kAllInputs));
                    std::vector<float> results[2];
                    for (const Isa isa : {Isa::Avx512Vnni, Isa::Amx}) {
                        std::vector<float>& result = results[isa == Isa::Amx];
                        result.assign(static_cast<size_t>(nInputs) * kRows, -1.0f);
                        kernelsOf(isa).multiply.of[static_cast<int>(type)](matrix->view, 0, kRows, x, rows.data(),
                                                                           nInputs, result.data(), kRows);
                    }
                    EXPECT_EQ(std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)), 0);
                }
            }
        }
    }
}

}  // namespace
}  // namespace dllama
