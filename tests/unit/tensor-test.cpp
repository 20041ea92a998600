#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tensor/blocks.hpp"
#include "tensor/half.hpp"

namespace dllama {
namespace {

TEST(Half, EveryF16ValueSurvivesTheWayThroughFloat) {
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        const auto half = static_cast<uint16_t>(bits);
        const float value = f16ToF32(half);
        if (std::isnan(value))
            EXPECT_TRUE(std::isnan(f16ToF32(f32ToF16(value))));
        else
            EXPECT_EQ(f32ToF16(value), half) << bits;
    }
}

TEST(Half, RoundsToNearestEvenAndOverflowsToInfinity) {
    EXPECT_EQ(f32ToF16(1.0f + 0x1p-11f), 0x3c00);             // a tie goes to the even neighbour
    EXPECT_EQ(f32ToF16(1.0f + 0x1p-11f + 0x1p-20f), 0x3c01);  // just above it does not
    EXPECT_EQ(f32ToF16(1.0f + 3 * 0x1p-11f), 0x3c02);
    EXPECT_EQ(f32ToF16(65519.0f), 0x7bff);
    EXPECT_EQ(f32ToF16(65520.0f), 0x7c00);
    EXPECT_EQ(f32ToF16(0x1p-25f), 0x0000);
    EXPECT_EQ(f32ToF16(0x1.8p-25f), 0x0001);
    EXPECT_EQ(f32ToBf16(1.0f + 0x1p-8f), 0x3f80);
    EXPECT_EQ(f32ToBf16(1.0f + 3 * 0x1p-8f), 0x3f82);
    EXPECT_TRUE(std::isnan(bf16ToF32(f32ToBf16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Blocks, Q40HoldsItsDefinition) {
    // 32 values from -8 to 7.5: the extreme is -8, so d = 1 and a nibble is trunc(x + 8.5).
    std::vector<float> x(32);
    for (int i = 0; i < 32; i++) x[i] = -8.0f + 0.5f * static_cast<float>(i);
    BlockQ40 block;
    quantizeQ40(x.data(), &block, 32);
    EXPECT_EQ(f16ToF32(block.d), 1.0f);
    for (int j = 0; j < 16; j++) {
        EXPECT_EQ(block.nibbles[j] & 15, std::min(15, static_cast<int>(x[j] + 8.5f)));
        EXPECT_EQ(block.nibbles[j] >> 4, std::min(15, static_cast<int>(x[j + 16] + 8.5f)));
    }
    const std::vector<float> zeros(32, 0.0f);
    quantizeQ40(zeros.data(), &block, 32);
    EXPECT_EQ(f16ToF32(block.d), 0.0f);
    EXPECT_EQ(block.nibbles[0], 0x88);
}

TEST(Blocks, ErrorsStayWithinHalfAStep) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> x(320), back(320);
    for (float& value : x) value = normal(random);
    for (DType type : {DType::Q80, DType::Q40}) {
        std::vector<std::byte> stored(storedBytes(type, 320));
        quantize(type, x.data(), stored.data(), 320);
        dequantize(type, stored.data(), back.data(), 320);
        for (int block = 0; block < 10; block++) {
            float largest = 0.0f;
            for (int i = 0; i < 32; i++) largest = std::max(largest, std::fabs(x[32 * block + i]));
            // Q40 has no code for +8: the value opposite the extreme may be a whole step off.
            const float bound = largest * (type == DType::Q40 ? 1.01f / 8 : 0.51f / 127);
            for (int i = 32 * block; i < 32 * block + 32; i++) EXPECT_NEAR(back[i], x[i], bound);
        }
    }
}

}  // namespace
}  // namespace dllama
