#include "cpu/prefetcher.hpp"

#include <algorithm>

#include "base/system-info.hpp"
#include "cpu/cpu-work.hpp"

namespace dllama {

namespace {

constexpr size_t kLine = 64;
/// About a microsecond's worth on a fast memory, so that whoever waits for a thread does not wait long.
constexpr size_t kPiece = 8192;

}  // namespace

Prefetcher::Prefetcher(ThreadPool& pool, int groupRows)
    : pool_(pool), groupRows_(groupRows), budget_(secondLevelCacheBytes() / 2) {}

void Prefetcher::plan(const CpuMatrix& matrix, const CpuMatrix* beside, int rowsPerItem) {
    pool_.finish();
    matrix_ = nullptr;
    started_ = false;
    own_ = 0;
    // Float matrices are read where they lie, row by row, and are there to be exact rather than fast.
    if (!isQuantized(matrix.dtype)) return;
    const auto bytesOf = [&](const CpuMatrix& m) {
        const size_t group = storedBytes(m.dtype, m.cols) * groupRows_;
        return Bytes{m.view.packed, group * (static_cast<size_t>(rowsPerItem) / groupRows_)};
    };
    bytes_[0] = bytesOf(matrix);
    bytes_[1] = beside ? bytesOf(*beside) : Bytes{};
    const int64_t wholeItems = matrix.rows / rowsPerItem;
    itemsPerThread_ = std::min<int64_t>(static_cast<int64_t>(budget_ / (bytes_[0].perItem + bytes_[1].perItem)),
                                        wholeItems / pool_.nThreads());
    if (itemsPerThread_ == 0) return;
    matrix_ = &matrix;
    rowsPerItem_ = rowsPerItem;
}

size_t Prefetcher::load(int thread, size_t at, size_t limit) const {
    const size_t perThread[2] = {bytes_[0].perItem * itemsPerThread_, bytes_[1].perItem * itemsPerThread_};
    // Item by item, as the product will read them: what is first used is there first.
    const size_t perItem = bytes_[0].perItem + bytes_[1].perItem, total = perThread[0] + perThread[1];
    const size_t end = std::min(total, at + limit);
    while (at < end) {
        const size_t item = at / perItem, within = at % perItem;
        const int which = within < bytes_[0].perItem ? 0 : 1;
        const size_t begin = which == 0 ? within : within - bytes_[0].perItem;
        const size_t n = std::min(end - at, bytes_[which].perItem - begin);
        const std::byte* from = bytes_[which].data + thread * perThread[which] + item * bytes_[which].perItem + begin;
        // Loads, not prefetch instructions: processors drop those that they have no room for, which is nearly all here.
        for (size_t i = 0; i < n; i += kLine) static_cast<void>(*static_cast<const volatile std::byte*>(from + i));
        at += n;
    }
    return end;
}

void Prefetcher::Others::operator()(int thread) const {
    const Prefetcher& p = prefetcher;
    const size_t total = (p.bytes_[0].perItem + p.bytes_[1].perItem) * p.itemsPerThread_;
    for (size_t at = 0; at < total && !p.pool_.hurry();) at = p.load(thread, at, kPiece);
}

bool Prefetcher::piece() {
    if (!matrix_) return false;
    if (!started_) {
        started_ = true;
        pool_.startOthers(others_);
    }
    const size_t total = (bytes_[0].perItem + bytes_[1].perItem) * itemsPerThread_;
    if (own_ >= total) return false;
    own_ = load(0, own_, kPiece);
    return own_ < total;
}

void Prefetcher::end() {
    pool_.finish();
}

int64_t Prefetcher::take(const CpuMatrix& matrix, int rowsPerItem) {
    const bool planned = started_ && matrix_ == &matrix && rowsPerItem_ == rowsPerItem;
    matrix_ = nullptr;
    started_ = false;
    return planned ? itemsPerThread_ : 0;
}

}  // namespace dllama
