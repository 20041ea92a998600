#include "gpu/cuda-weights.hpp"

#include <algorithm>
#include <cstring>

#include "base/errors.hpp"

namespace dllama::gpu {

namespace {

constexpr size_t kStagingBytes = size_t{8} << 20;

size_t alignUp(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/// Shape of a matrix without memory.
Weights shapeOf(const TensorSource& source, const MatrixSpec& spec) {
    Weights w;
    w.dtype = source.info(spec.weights.front().name).dtype;
    w.cols = static_cast<int>(spec.weights.front().cols());
    w.groups = ceilDiv(w.cols, kGroup);
    for (const TensorSlice& slice : spec.weights) {
        DLLAMA_CHECK(source.info(slice.name).dtype == w.dtype && slice.cols() == w.cols);
        w.rows += static_cast<int>(slice.rows());
    }
    return w;
}

size_t dataBytes(const Weights& w) {
    const size_t groups = static_cast<size_t>(w.rows) * w.groups;
    return groups * (isQuantized(w.dtype) ? quantGroupBytes(w.dtype) : kGroup * blockBytes(w.dtype));
}

size_t scaleBytes(const Weights& w) {
    return isQuantized(w.dtype) ? static_cast<size_t>(w.rows) * w.groups * 4 * sizeof(__half) : 0;
}

bool sameShape(const Weights& a, const Weights& b) {
    return a.dtype == b.dtype && a.rows == b.rows && a.cols == b.cols;
}

}  // namespace

/// Two stagings in turn: while one is copied and repacked, the other is filled.
struct WeightLoader::Lane {
    StreamHandle handle = makeStream();
    Stream stream{.handle = handle.get()};
    DeviceMemory pinned[2] = {allocatePinned(kStagingBytes), allocatePinned(kStagingBytes)};
    DeviceMemory staging[2] = {allocateDevice(kStagingBytes), allocateDevice(kStagingBytes)};
    EventHandle free[2] = {makeEvent(), makeEvent()};
    int turn = 0;
};

WeightLoader::WeightLoader(int gpuIndex) : gpuIndex_(gpuIndex) {}
WeightLoader::~WeightLoader() = default;

std::unique_ptr<WeightLoader::Lane> WeightLoader::borrow() {
    check(cudaSetDevice(gpuIndex_), "cudaSetDevice");
    {
        const std::lock_guard lock(mutex_);
        if (!idle_.empty()) {
            std::unique_ptr<Lane> lane = std::move(idle_.back());
            idle_.pop_back();
            return lane;
        }
    }
    return std::make_unique<Lane>();
}

template <typename Use>
void WeightLoader::stream(const TensorSource& source, const TensorSlice& slice, const Use& use) {
    std::vector<std::byte> scratch;
    const std::span<const std::byte> bytes = source.read(slice, scratch);
    std::unique_ptr<Lane> lane = borrow();
    const size_t rowBytes = storedBytes(source.info(slice.name).dtype, slice.cols());
    // A row longer than the staging (a long vector) is cut into pieces of whole blocks.
    const DType dtype = source.info(slice.name).dtype;
    const int64_t unitCols = rowBytes <= kStagingBytes ? slice.cols() : 1 << 16;
    DLLAMA_CHECK(rowBytes <= kStagingBytes || slice.rows() == 1);
    const size_t unitBytes = storedBytes(dtype, unitCols);
    const int64_t unitsAtOnce = static_cast<int64_t>(kStagingBytes / unitBytes);
    const int64_t units = (slice.rows() * slice.cols() + unitCols - 1) / unitCols;
    for (int64_t unit = 0; unit < units; unit += unitsAtOnce) {
        const size_t begin = unit * unitBytes;
        const size_t size = std::min(bytes.size() - begin, static_cast<size_t>(unitsAtOnce) * unitBytes);
        const int i = lane->turn;
        lane->turn ^= 1;
        check(cudaEventSynchronize(lane->free[i].get()), "loading weights");
        std::memcpy(lane->pinned[i].get(), bytes.data() + begin, size);
        check(cudaMemcpyAsync(lane->staging[i].get(), lane->pinned[i].get(), size, cudaMemcpyHostToDevice,
                              lane->handle.get()),
              "loading weights");
        use(lane->stream, reinterpret_cast<const uint8_t*>(lane->staging[i].get()), unit * unitCols,
            static_cast<int64_t>(size / blockBytes(dtype)) * blockValues(dtype));
        check(cudaEventRecord(lane->free[i].get(), lane->handle.get()), "loading weights");
    }
    check(cudaStreamSynchronize(lane->handle.get()), "loading weights");
    source.release(slice);
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(lane));
}

void WeightLoader::floats(const TensorSource& source, const TensorSlice& slice, float* to) {
    const DType dtype = source.info(slice.name).dtype;
    stream(source, slice, [&](const Stream& lane, const uint8_t* stored, int64_t first, int64_t n) {
        launchWiden({dtype, stored, to + first, n}, lane);
    });
}

void WeightLoader::fill(const TensorSource& source, const MatrixSpec& spec, const Weights& weights) {
    int64_t row0 = 0;
    Weights one = weights;
    one.rows = 1;
    const size_t rowBytes = dataBytes(one);
    for (const TensorSlice& slice : spec.weights) {
        stream(source, slice, [&](const Stream& lane, const uint8_t* stored, int64_t first, int64_t n) {
            const int64_t row = row0 + first / weights.cols;
            launchRepack({weights.dtype, stored, const_cast<uint8_t*>(weights.data) + row * rowBytes,
                          const_cast<__half*>(weights.scales) + row * weights.groups * 4,
                          static_cast<int>(n / weights.cols), weights.cols, weights.groups},
                         lane);
        });
        row0 += slice.rows();
    }
}

std::unique_ptr<CudaMatrix> WeightLoader::matrix(const TensorSource& source, const MatrixSpec& spec) {
    check(cudaSetDevice(gpuIndex_), "cudaSetDevice");
    auto matrix = std::make_unique<CudaMatrix>();
    Weights& w = matrix->weights;
    w = shapeOf(source, spec);
    const size_t data = alignUp(dataBytes(w)), scales = alignUp(scaleBytes(w));
    const size_t bias = spec.biases.empty() ? 0 : w.rows * sizeof(float);
    matrix->memory = allocateDevice(data + scales + bias);
    w.data = reinterpret_cast<uint8_t*>(matrix->memory.get());
    w.scales = reinterpret_cast<__half*>(matrix->memory.get() + data);
    fill(source, spec, w);
    if (bias) {
        auto* to = reinterpret_cast<float*>(matrix->memory.get() + data + scales);
        w.bias = to;
        for (const TensorSlice& slice : spec.biases) {
            floats(source, slice, to);
            to += slice.rows() * slice.cols();
        }
    }
    matrix->dtype = w.dtype;
    matrix->rows = w.rows;
    matrix->cols = w.cols;
    matrix->deviceBytes = data + scales + bias;
    return matrix;
}

std::unique_ptr<CudaExperts> WeightLoader::experts(const TensorSource& source, const std::vector<ExpertSpec>& specs) {
    check(cudaSetDevice(gpuIndex_), "cudaSetDevice");
    if (specs.size() > kMaxExperts)
        throw ConfigError("{} experts in a layer; the GPU's kernels take up to {}", specs.size(), kMaxExperts);
    auto set = std::make_unique<CudaExperts>();
    ExpertWeights& w = set->weights;
    set->nExperts = w.nExperts = static_cast<int>(specs.size());
    std::vector<int32_t> slots(specs.size(), -1);
    int nSlots = 0;
    for (size_t e = 0; e < specs.size(); e++)
        if (!specs[e].gate.weights.empty()) slots[e] = nSlots++;
    const auto first = std::find(slots.begin(), slots.end(), 0);
    const size_t slotsBytes = alignUp(slots.size() * sizeof(int32_t));
    size_t bytes = slotsBytes;
    Weights* matrices[3] = {&w.gate, &w.up, &w.down};
    size_t dataAt[3] = {}, scalesAt[3] = {};
    if (first != slots.end()) {
        const ExpertSpec& spec = specs[first - slots.begin()];
        const MatrixSpec* parts[3] = {&spec.gate, &spec.up, &spec.down};
        for (int m = 0; m < 3; m++) {
            *matrices[m] = shapeOf(source, *parts[m]);
            w.dataStride[m] = alignUp(dataBytes(*matrices[m]));
            w.scaleStride[m] = alignUp(scaleBytes(*matrices[m])) / sizeof(__half);
            dataAt[m] = bytes;
            scalesAt[m] = bytes + nSlots * w.dataStride[m];
            bytes = scalesAt[m] + nSlots * w.scaleStride[m] * sizeof(__half);
        }
    }
    set->memory = allocateDevice(bytes);
    std::byte* base = set->memory.get();
    w.slots = reinterpret_cast<int32_t*>(base);
    check(cudaMemcpy(base, slots.data(), slots.size() * sizeof(int32_t), cudaMemcpyHostToDevice), "loading experts");
    for (int m = 0; m < 3; m++) {
        matrices[m]->data = reinterpret_cast<uint8_t*>(base + dataAt[m]);
        matrices[m]->scales = reinterpret_cast<__half*>(base + scalesAt[m]);
    }
    for (size_t e = 0; e < specs.size(); e++) {
        if (slots[e] < 0) continue;
        const MatrixSpec* parts[3] = {&specs[e].gate, &specs[e].up, &specs[e].down};
        for (int m = 0; m < 3; m++) {
            DLLAMA_CHECK(sameShape(shapeOf(source, *parts[m]), *matrices[m]) && parts[m]->biases.empty());
            Weights one = *matrices[m];
            one.data += slots[e] * w.dataStride[m];
            one.scales += slots[e] * w.scaleStride[m];
            fill(source, *parts[m], one);
        }
    }
    set->deviceBytes = bytes;
    return set;
}

}  // namespace dllama::gpu
