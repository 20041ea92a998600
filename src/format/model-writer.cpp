#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/errors.hpp"
#include "format/legacy-model.hpp"
#include "format/model-file.hpp"
#include "format/model-layout.hpp"

namespace dllama {

namespace {

/// A file that gets its name only by finish().
class PartFile {
  public:
    explicit PartFile(const std::string& path)
        : path_(path), part_(path + ".part"), file_(std::fopen(part_.c_str(), "wb")) {
        if (!file_) throw FormatError("{}: {}", part_, std::strerror(errno));
    }
    ~PartFile() {
        if (!file_) return;
        std::fclose(file_);
        std::remove(part_.c_str());
    }
    void write(const void* data, size_t n) {
        if (std::fwrite(data, 1, n, file_) != n) throw FormatError("{}: {}", part_, std::strerror(errno));
        position_ += n;
    }
    void padTo(size_t offset) {
        const std::vector<char> zeros(offset - position_);
        write(zeros.data(), zeros.size());
    }
    void rewind() {
        std::rewind(file_);
        position_ = 0;
    }
    void finish() {
        const bool written = std::fflush(file_) == 0 && ::fsync(::fileno(file_)) == 0;
        std::fclose(file_);
        file_ = nullptr;
        if (!written || std::rename(part_.c_str(), path_.c_str()) != 0) {
            std::remove(part_.c_str());
            throw FormatError("{}: {}", path_, std::strerror(errno));
        }
    }

  private:
    std::string path_, part_;
    std::FILE* file_;
    size_t position_ = 0;
};

void writeHeader(PartFile& file, const HeaderPairs& pairs) {
    file.write(&kModelMagic, 4);
    const int32_t size = static_cast<int32_t>(8 + 8 * pairs.size());
    file.write(&size, 4);
    for (const auto& [key, value] : pairs) {
        file.write(&key, 4);
        file.write(&value, 4);
    }
}

bool sameTensors(const std::vector<TensorInfo>& a, const std::vector<TensorInfo>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const TensorInfo& x, const TensorInfo& y) {
        return x.name == y.name && x.dtype == y.dtype && x.rows == y.rows && x.cols == y.cols;
    });
}

/// The JSON document; offsets follow from its own length, which depends on the digits of the offsets: two or three
/// rounds settle it.
std::string describe(const ModelConfig& config, const std::vector<TensorInfo>& tensors,
                     const std::vector<uint64_t>& hashes) {
    nlohmann::json fields = nlohmann::json::parse(modelConfigToJson(config));
    nlohmann::json document = {
        {"format", kDescribedVersion}, {"name", fields["name"]}, {"architecture", fields["architecture"]}};
    fields.erase("name");
    fields.erase("architecture");
    document["config"] = fields;
    std::string text;
    for (size_t length = 0;; length = text.size()) {
        nlohmann::json list = nlohmann::json::array();
        size_t end = described::dataBegin(length);
        for (size_t i = 0; i < tensors.size(); i++) {
            const TensorInfo& t = tensors[i];
            nlohmann::json shape = t.rows == 1 ? nlohmann::json{t.cols} : nlohmann::json{t.rows, t.cols};
            list.push_back(
                {t.name, dtypeName(t.dtype), shape, described::aligned(end), fmt::format("{:016x}", hashes[i])});
            end = described::aligned(end) + t.bytes();
        }
        document["tensors"] = list;
        text = document.dump();
        if (text.size() == length) return text;
    }
}

}  // namespace

void writeModelFile(const std::string& path, const ModelConfig& config, DType weightType,
                    const std::vector<TensorInfo>& tensors,
                    const std::function<std::vector<std::byte>(const TensorInfo&)>& fill) {
    PartFile file(path);
    const auto filled = [&](const TensorInfo& tensor) {
        std::vector<std::byte> bytes = fill(tensor);
        DLLAMA_CHECK(bytes.size() == tensor.bytes());
        return bytes;
    };
    const auto header = legacyHeader(config, weightType);
    if (header && sameTensors(tensors, legacyTensors(config, weightType))) {
        writeHeader(file, *header);
        for (const TensorInfo& tensor : tensors) {
            const std::vector<std::byte> bytes = filled(tensor);
            file.write(bytes.data(), bytes.size());
        }
        file.finish();
        return;
    }

    // The hashes stand before the data: the description is written twice, with the same length.
    std::vector<uint64_t> hashes(tensors.size());
    const auto writeDescription = [&] {
        const std::string text = describe(config, tensors, hashes);
        const uint64_t hash = XXH3_64bits(text.data(), text.size());
        writeHeader(file, {{0, kDescribedVersion},
                           {1, kArchDescribed},
                           {100, static_cast<int32_t>(text.size())},
                           {101, static_cast<int32_t>(hash & 0xffffffffu)},
                           {102, static_cast<int32_t>(hash >> 32)}});
        file.write(text.data(), text.size());
        return described::dataBegin(text.size());
    };
    size_t end = writeDescription();
    for (size_t i = 0; i < tensors.size(); i++) {
        const std::vector<std::byte> bytes = filled(tensors[i]);
        hashes[i] = XXH3_64bits(bytes.data(), bytes.size());
        file.padTo(described::aligned(end));
        file.write(bytes.data(), bytes.size());
        end = described::aligned(end) + bytes.size();
    }
    file.rewind();
    writeDescription();
    file.finish();
}

}  // namespace dllama
