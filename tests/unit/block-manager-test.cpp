#include "engine/block-manager.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "backend/batch.hpp"

namespace dllama::test {
namespace {

constexpr int kBlock = kKvBlockPositions;

std::vector<int> tokensOf(int n, int first = 0) {
    std::vector<int> tokens(n);
    std::iota(tokens.begin(), tokens.end(), first);
    return tokens;
}

TEST(BlockManagerTest, ACommonPrefixIsHeldOnce) {
    BlockManager manager(8, true);
    const std::vector<int> tokens = tokensOf(3 * kBlock + 5);
    std::vector<int> first;
    ASSERT_TRUE(manager.grow(first, 3 * kBlock + 5));
    manager.publish(tokens, first, 3 * kBlock + 5);
    EXPECT_EQ(manager.nFree(), 4);

    BlockManager::Prefix second = manager.acquire(tokens);
    EXPECT_EQ(second.nCached, 3 * kBlock);  // the end belongs to the first one alone
    EXPECT_TRUE(std::equal(second.blocks.begin(), second.blocks.end(), first.begin()));
    EXPECT_EQ(manager.references(first[0]), 2);
    EXPECT_EQ(manager.nFree(), 4);
    ASSERT_TRUE(manager.grow(second.blocks, 3 * kBlock + 1));
    EXPECT_NE(second.blocks.back(), first.back());
}

TEST(BlockManagerTest, WhatIsReleasedIsFoundAgainUntilItIsNeeded) {
    BlockManager manager(4, true);
    const std::vector<int> old = tokensOf(2 * kBlock + 7), recent = tokensOf(kBlock, 1000);
    for (const auto* tokens : {&old, &recent}) {
        std::vector<int> blocks;
        ASSERT_TRUE(manager.grow(blocks, static_cast<int>(tokens->size())));
        manager.release(*tokens, blocks, static_cast<int>(tokens->size()));
    }
    EXPECT_EQ(manager.nFree(), 4);
    BlockManager::Prefix found = manager.acquire(old);
    EXPECT_EQ(found.nCached, 2 * kBlock + 7);  // the partly filled block too
    manager.release(old, found.blocks, found.nCached);

    std::vector<int> taken;
    ASSERT_TRUE(manager.grow(taken, kBlock));
    EXPECT_EQ(manager.acquire(recent).nCached, 0) << "the least recently used goes first";
    ASSERT_TRUE(manager.grow(taken, 2 * kBlock));
    found = manager.acquire(old);
    EXPECT_EQ(found.nCached, 2 * kBlock) << "a sequence loses its end first";
    manager.release(old, found.blocks, found.nCached);
    ASSERT_TRUE(manager.grow(taken, 4 * kBlock));
    EXPECT_EQ(manager.acquire(old).nCached, 0);
    EXPECT_FALSE(manager.grow(taken, 5 * kBlock));
    EXPECT_EQ(taken.size(), 4u);
}

TEST(BlockManagerTest, NothingIsSharedWhereItMustNot) {
    BlockManager manager(4, false);
    const std::vector<int> tokens = tokensOf(2 * kBlock);
    std::vector<int> blocks;
    ASSERT_TRUE(manager.grow(blocks, 2 * kBlock));
    manager.release(tokens, blocks, 2 * kBlock);
    EXPECT_EQ(manager.acquire(tokens).nCached, 0);
    EXPECT_EQ(manager.nFree(), 4);
}

TEST(BlockManagerTest, NothingIsFoundAfterALoss) {
    BlockManager manager(4, true);
    const std::vector<int> tokens = tokensOf(kBlock + 3);
    std::vector<int> blocks;
    ASSERT_TRUE(manager.grow(blocks, kBlock + 3));
    manager.publish(tokens, blocks, kBlock + 3);
    manager.invalidate();
    EXPECT_EQ(manager.acquire(tokens).nCached, 0);
    manager.release(tokens, blocks, 0);
    EXPECT_EQ(manager.acquire(tokens).nCached, 0);
    EXPECT_EQ(manager.nFree(), 4);
}

/// What a cache really holds: (block, offset) -> the text up to and with the token there. The manager promises that
/// acquired positions hold exactly their text, and that nobody writes into what another one reads.
TEST(BlockManagerTest, RandomOperationsKeepEveryTextWhole) {
    constexpr int kBlocks = 12, kMostSequences = 6, kOperations = 100'000;
    struct Text {
        std::vector<int> tokens, blocks;
        int nCached = 0;
    };
    std::mt19937 random(20261127);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    BlockManager manager(kBlocks, true);
    std::vector<Text> running;
    std::vector<std::vector<std::vector<int>>> contents(kBlocks, std::vector<std::vector<int>>(kBlock));
    int nHits = 0, nRefused = 0;
    const auto prefixOf = [](const Text& text, int n) {
        return std::vector<int>(text.tokens.begin(), text.tokens.begin() + n);
    };
    for (int operation = 0; operation < kOperations; operation++) {
        const int choice = below(100);
        if (choice < 20 && running.size() < kMostSequences) {
            // Few beginnings and few tokens: common prefixes of all lengths.
            Text text;
            const int n = 1 + below(4 * kBlock);
            for (int i = 0; i < n; i++) text.tokens.push_back(i % 20 == 0 ? below(2) : i);
            BlockManager::Prefix prefix = manager.acquire(text.tokens);
            text.blocks = std::move(prefix.blocks);
            text.nCached = prefix.nCached;
            nHits += text.nCached > 0;
            for (int p = 0; p < text.nCached; p++)
                ASSERT_EQ(contents[text.blocks[p / kBlock]][p % kBlock], prefixOf(text, p + 1)) << operation;
            running.push_back(std::move(text));
        } else if (choice < 75 && !running.empty()) {
            // Compute some of its tokens, with new ones behind the prompt now and then.
            Text& text = running[below(static_cast<int>(running.size()))];
            if (text.nCached == static_cast<int>(text.tokens.size())) text.tokens.push_back(below(2));
            const int left = static_cast<int>(text.tokens.size()) - text.nCached;
            const int end = text.nCached + 1 + below(left);
            const size_t before = text.blocks.size();
            if (!manager.grow(text.blocks, end)) {
                ASSERT_EQ(text.blocks.size(), before);
                ASSERT_GT(BlockManager::missing(text.blocks, end), manager.nFree());
                nRefused++;
                continue;
            }
            for (int p = text.nCached; p < end; p++) {
                ASSERT_EQ(manager.references(text.blocks[p / kBlock]), 1) << "written while another one reads";
                contents[text.blocks[p / kBlock]][p % kBlock] = prefixOf(text, p + 1);
            }
            text.nCached = end;
            manager.publish(text.tokens, text.blocks, text.nCached);
        } else if (choice < 98 && !running.empty()) {
            const int i = below(static_cast<int>(running.size()));
            manager.release(running[i].tokens, running[i].blocks, running[i].nCached);
            running.erase(running.begin() + i);
        } else if (choice == 99 && below(20) == 0) {
            manager.invalidate();
            for (Text& text : running) {
                manager.release(text.tokens, text.blocks, 0);
                text.blocks.clear();
                text.nCached = 0;
            }
        }
        std::vector<int> held(kBlocks, 0);
        for (const Text& text : running)
            for (const int block : text.blocks) held[block]++;
        int nHeld = 0;
        for (int block = 0; block < kBlocks; block++) {
            ASSERT_EQ(manager.references(block), held[block]) << operation;
            nHeld += held[block] > 0;
        }
        ASSERT_EQ(manager.nFree(), kBlocks - nHeld);
        for (const Text& text : running)
            for (int p = 0; p < text.nCached; p += 7)
                ASSERT_EQ(contents[text.blocks[p / kBlock]][p % kBlock], prefixOf(text, p + 1)) << operation;
    }
    EXPECT_GT(nHits, kOperations / 100);
    EXPECT_GT(nRefused, kOperations / 1000);
}

}  // namespace
}  // namespace dllama::test
