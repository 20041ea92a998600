#include "cluster/slice-digests.hpp"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <xxhash.h>

#include <cstring>

#include "base/errors.hpp"

namespace dllama {

SliceDigests::Digest SliceDigests::digest(std::span<const std::byte> bytes) const {
    Digest digest{};
    if (kind_ == Kind::Sha256) {
        if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), nullptr, EVP_sha256(), nullptr) != 1)
            throw Error("OpenSSL cannot compute SHA-256");
        return digest;
    }
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
    std::memcpy(digest.data(), canonical.digest, sizeof canonical.digest);
    return digest;
}

std::string SliceDigests::of(const std::vector<TensorSlice>& slices, ThreadPool* pool,
                             const std::function<void(size_t done)>& progress) {
    std::vector<std::string> names;
    for (const TensorSlice& s : slices)
        names.push_back(fmt::format("{} {} {} {} {}\n", s.name, s.rowBegin, s.rowEnd, s.colBegin, s.colEnd));
    std::vector<Digest> digests(slices.size());
    size_t done = 0;
    const auto read = [&](int64_t begin, int64_t end) {
        std::vector<std::byte> scratch;
        for (int64_t i = begin; i < end; i++) {
            {
                const std::lock_guard lock(mutex_);
                if (const auto found = known_.find(names[i]); found != known_.end()) {
                    digests[i] = found->second;
                    continue;
                }
            }
            const std::span<const std::byte> bytes = source_.read(slices[i], scratch);
            digests[i] = digest(bytes);
            const std::lock_guard lock(mutex_);
            known_.emplace(names[i], digests[i]);
            done += bytes.size();
            if (progress) progress(done);
        }
    };
    const auto n = static_cast<int64_t>(slices.size());
    pool != nullptr ? pool->parallelFor(n, 1, read) : read(0, n);

    std::string all;
    for (size_t i = 0; i < slices.size(); i++)
        all.append(names[i]).append(reinterpret_cast<const char*>(digests[i].data()), digests[i].size());
    const Digest total = digest(std::as_bytes(std::span(all.data(), all.size())));
    std::string hex;
    for (const unsigned char byte : total) hex += fmt::format("{:02x}", byte);
    return hex;
}

}  // namespace dllama
