#include "format/model-file.hpp"

#include <xxhash.h>

#include "base/byte-reader.hpp"
#include "base/errors.hpp"
#include "base/json.hpp"
#include "format/legacy-model.hpp"
#include "format/model-layout.hpp"
#include "tensor/blocks.hpp"

namespace dllama {

namespace {

using nlohmann::json;

int64_t dimension(const json& value) {
    const int64_t n = integerFrom<int64_t>(value);
    if (n < 1 || n > (int64_t{1} << 31)) throw json::out_of_range::create(406, "dimension", &value);
    return n;
}

struct Entry {
    TensorInfo info;
    size_t offset = 0;
    uint64_t hash = 0;
};

Entry parseEntry(const json& item, size_t index, const std::string& origin) {
    Entry entry;
    try {
        if (item.size() != 5) throw json::other_error::create(501, "length", &item);
        entry.info.name = item.at(0).get<std::string>();
        const auto dtype = dtypeFromName(item.at(1).get<std::string>());
        if (!dtype) throw FormatError("{}: tensor {}: unknown type {}", origin, entry.info.name, item.at(1).dump());
        entry.info.dtype = *dtype;
        const json& shape = item.at(2);
        if (shape.size() < 1 || shape.size() > 2) throw json::other_error::create(501, "shape", &item);
        entry.info.rows = shape.size() == 2 ? dimension(shape.at(0)) : 1;
        entry.info.cols = dimension(shape.at(shape.size() - 1));
        entry.offset = integerFrom<uint64_t>(item.at(3));
        const std::string hash = item.at(4).get<std::string>();
        size_t used = 0;
        entry.hash = std::stoull(hash, &used, 16);
        if (hash.size() != 16 || used != 16) throw json::other_error::create(501, "hash", &item);
    } catch (const json::exception&) {
        throw FormatError("{}: entry {} of the tensor list is damaged", origin, index);
    } catch (const std::logic_error&) {  // stoull
        throw FormatError("{}: tensor {}: its hash is damaged", origin, entry.info.name);
    }
    if (entry.info.cols % blockValues(entry.info.dtype) != 0)
        throw FormatError("{}: tensor {}: {} columns are no multiple of {}, the block length of {}", origin,
                          entry.info.name, entry.info.cols, blockValues(entry.info.dtype), dtypeName(entry.info.dtype));
    return entry;
}

}  // namespace

ModelFile::ModelFile(const std::string& path) : file_(path) {
    ByteReader reader(file_.bytes(), path);
    const auto magic = reader.read<uint32_t>("the magic number");
    if (magic == 0xABCD00 || magic == 0xABCD01)
        throw FormatError("{}: this model format of distributed-llama is too old; convert the model again", path);
    if (magic != kModelMagic) throw FormatError("{}: not a .m model file (magic 0x{:08X})", path, magic);
    const auto headerSize = reader.read<int32_t>("the header size");
    if (headerSize < 16 || headerSize % 8 != 0 || headerSize > kMaxHeaderBytes)
        throw FormatError("{}: header size {} is not from 16 to {}", path, headerSize, kMaxHeaderBytes);
    std::vector<std::pair<int32_t, int32_t>> pairs;
    for (int32_t at = 8; at < headerSize; at += 8) {
        const auto key = reader.read<int32_t>("a header key");
        pairs.push_back({key, reader.read<int32_t>("a header value")});
    }
    const auto find = [&](int32_t key) {
        for (const auto& pair : pairs)
            if (pair.first == key) return pair.second;
        return 0;
    };
    if (find(1) != kArchDescribed) {
        openLegacy(pairs, reader.position());
    } else {
        if (find(0) != kDescribedVersion)
            throw FormatError("{}: version {} of the format, this program reads {}", path, find(0), kDescribedVersion);
        const std::string_view text = reader.text(static_cast<uint32_t>(find(100)), "the model description");
        const uint64_t stated =
            static_cast<uint32_t>(find(101)) | (static_cast<uint64_t>(static_cast<uint32_t>(find(102))) << 32);
        if (XXH3_64bits(text.data(), text.size()) != stated)
            throw FormatError("{}: the model description is damaged (its hash differs)", path);
        openDescribed(text);
    }

    verified_ = std::make_unique<std::once_flag[]>(tensors_.size());
    std::string identity = modelConfigToJson(config_);
    for (const TensorInfo& tensor : tensors_)
        identity += fmt::format("\n{} {} {} {} {:x}", tensor.name, dtypeName(tensor.dtype), tensor.rows, tensor.cols,
                                tensorHash(tensor.name));
    contentId_ = XXH3_64bits(identity.data(), identity.size());
}

void ModelFile::openLegacy(const std::vector<std::pair<int32_t, int32_t>>& pairs, size_t offset) {
    const LegacyModel model = legacyModelFromHeader(pairs, path());
    config_ = model.config;
    weightType_ = model.weightType;
    tensors_ = legacyTensors(config_, weightType_, bytes() - offset);
    for (size_t i = 0; i < tensors_.size(); i++) {
        const TensorInfo& tensor = tensors_[i];
        if (tensor.cols % blockValues(tensor.dtype) != 0)
            throw FormatError("{}: tensor {}: {} columns are no multiple of {}", path(), tensor.name, tensor.cols,
                              blockValues(tensor.dtype));
        if (tensor.bytes() > bytes() - offset)
            throw FormatError("{}: tensor {} needs {} bytes at offset {}, the file has {}: it is truncated", path(),
                              tensor.name, tensor.bytes(), offset, bytes());
        places_[tensor.name] = {i, offset, 0};
        offset += tensor.bytes();
    }
    if (offset != bytes())
        throw FormatError("{}: the file has {} bytes behind its last tensor", path(), bytes() - offset);
}

void ModelFile::openDescribed(std::string_view text) {
    const json document = parseJson(text);
    if (document.is_discarded() || !document.is_object())
        throw FormatError("{}: the model description is not a JSON object of at most {} levels", path(), kMaxJsonDepth);
    if (document.value("format", json(0)) != json(kDescribedVersion))
        throw FormatError("{}: the description's format is not {}", path(), kDescribedVersion);
    for (const char* key : {"name", "architecture", "config", "tensors"})
        if (!document.contains(key)) throw FormatError("{}: the model description lacks {}", path(), key);
    json config = document.at("config");
    if (!config.is_object()) throw FormatError("{}: the configuration is not a JSON object", path());
    config["name"] = document.at("name");
    config["architecture"] = document.at("architecture");
    config_ = modelConfigFromJson(config.dump(), path());

    const json& list = document.at("tensors");
    if (!list.is_array()) throw FormatError("{}: the tensor list is not a JSON array", path());
    hashed_ = true;
    size_t end = described::dataBegin(text.size());
    std::vector<Entry> entries;
    for (const json& item : list) {
        Entry entry = parseEntry(item, entries.size(), path());
        const TensorInfo& tensor = entry.info;
        if (entry.offset != described::aligned(end))
            throw FormatError("{}: tensor {} lies at offset {}, expected {}", path(), tensor.name, entry.offset,
                              described::aligned(end));
        if (entry.offset > bytes() || tensor.bytes() > bytes() - entry.offset)
            throw FormatError("{}: tensor {} needs {} bytes at offset {}, the file has {}: it is truncated", path(),
                              tensor.name, tensor.bytes(), entry.offset, bytes());
        end = entry.offset + tensor.bytes();
        entries.push_back(std::move(entry));
    }
    if (end != bytes()) throw FormatError("{}: the file has {} bytes behind its last tensor", path(), bytes() - end);
    for (Entry& entry : entries) tensors_.push_back(std::move(entry.info));
    for (size_t i = 0; i < tensors_.size(); i++) {
        if (!places_.emplace(tensors_[i].name, Place{i, entries[i].offset, entries[i].hash}).second)
            throw FormatError("{}: tensor {} is listed twice", path(), tensors_[i].name);
        if (tensors_[i].name == (config_.isLatent() ? "layers.0.attn.o.weight" : "layers.0.attn.q.weight"))
            weightType_ = tensors_[i].dtype;
    }
}

const ModelFile::Place& ModelFile::place(std::string_view name) const {
    const auto found = places_.find(name);
    if (found == places_.end()) throw FormatError("{}: there is no tensor {}", path(), name);
    return found->second;
}

uint64_t ModelFile::tensorHash(std::string_view name) const {
    return place(name).hash;
}
const TensorInfo& ModelFile::info(std::string_view name) const {
    return tensors_[place(name).index];
}
bool ModelFile::has(std::string_view name) const {
    return places_.contains(name);
}

std::span<const std::byte> ModelFile::tensorBytes(const Place& place) const {
    return file_.bytes().subspan(place.offset, tensors_[place.index].bytes());
}

void ModelFile::verify(const Place& place) const {
    if (!hashed_) return;
    std::call_once(verified_[place.index], [&] {
        const std::span<const std::byte> bytes = tensorBytes(place);
        if (XXH3_64bits(bytes.data(), bytes.size()) != place.hash)
            throw FormatError("{}: tensor {} is damaged (its hash differs)", path(), tensors_[place.index].name);
    });
}

bool ModelFile::isMapped(const TensorSlice& slice) const {
    const Place& found = place(slice.name);
    const TensorInfo& tensor = tensors_[found.index];
    // Packed legacy files may put floats at odd addresses; those are copied.
    return slice.colBegin == 0 && slice.colEnd == tensor.cols && found.offset % 4 == 0;
}

std::span<const std::byte> ModelFile::read(const TensorSlice& slice, std::vector<std::byte>& scratch) const {
    const Place& found = place(slice.name);
    const TensorInfo& tensor = tensors_[found.index];
    const int64_t block = blockValues(tensor.dtype);
    DLLAMA_CHECK(0 <= slice.rowBegin && slice.rowBegin <= slice.rowEnd && slice.rowEnd <= tensor.rows);
    DLLAMA_CHECK(0 <= slice.colBegin && slice.colBegin <= slice.colEnd && slice.colEnd <= tensor.cols);
    DLLAMA_CHECK(slice.colBegin % block == 0 && slice.colEnd % block == 0);
    verify(found);
    return sliceBytes(tensor, tensorBytes(found), slice, scratch);
}

void ModelFile::release(const TensorSlice& slice) const {
    const Place& found = place(slice.name);
    const TensorInfo& tensor = tensors_[found.index];
    const size_t row = storedBytes(tensor.dtype, tensor.cols);
    file_.release(tensorBytes(found).subspan(slice.rowBegin * row, slice.rows() * row));
}

}  // namespace dllama
