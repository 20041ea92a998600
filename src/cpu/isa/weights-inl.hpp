// No #pragma once: a part of each file of this folder, by way of kernels-inl.hpp, which says what vectors it is written
// over. How each quantised type's blocks are unpacked, for all instruction sets.
//
// Weights<type> is one block of each row of a packed group (WeightView) in registers:
//   load(head, words)   head: headBytes of each row; words: the rest in words of 4 bytes, word i of all rows together
//   scales              of each row
//   dot(part, input)    the exact sums of the products with input block `part` of the block's blockValues / 32; an
//                       instruction set may pass something else that its dotNibbles() and dotBytes() take (amx.cpp)
// A type whose values have an offset takes it from input.sum.

namespace dllama {
namespace {

template <DType kType>
struct Weights;

template <>
struct Weights<DType::Q40> {
    Floats scales;
    Bytes parts[8];  // the stored half bytes 0..15, which stand for -8..7

    void load(const std::byte* head, const std::byte* words) {
        scales = loadF16(head);
        for (int j = 0; j < 4; j++) {
            const Bytes both = loadBytes(words, j);
            parts[j] = lowNibbles(both);
            parts[j + 4] = highNibbles(both);
        }
    }
    template <class Input>
    auto dot(int, Input& input) const {
        return dotNibbles<3>(parts, input);
    }
};

template <>
struct Weights<DType::Q80> {
    Floats scales;
    Bytes parts[8];  // signedBytes()

    void load(const std::byte* head, const std::byte* words) {
        scales = loadF16(head);
        for (int j = 0; j < 8; j++) parts[j] = signedBytes(loadBytes(words, j));
    }
    template <class Input>
    auto dot(int, Input& input) const {
        return dotBytes(parts, input);
    }
};

}  // namespace
}  // namespace dllama
