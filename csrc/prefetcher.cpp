#include "prefetcher.h"

#include <unistd.h>

#include <exception>
#include <functional>
#include <string>
#include <utility>

namespace viv1t {

Prefetcher::Prefetcher(std::size_t threads, std::size_t slots)
    : owner_(getpid()), state_(std::make_unique<State>(slots)) {
    if (threads == 0) throw std::invalid_argument("a prefetcher needs at least one thread");
    try {
        for (std::size_t i = 0; i < threads; ++i) threads_.emplace_back(work, std::ref(*state_));
    } catch (...) {
        close();
        throw;
    }
}

Prefetcher::~Prefetcher() {
    if (getpid() == owner_) {
        close();
        return;
    }
    // In a forked child the workers do not exist, and what they waited on can be neither locked nor destroyed.
    for (std::thread& thread : threads_) thread.detach();
    static_cast<void>(state_.release());
}

void Prefetcher::submit(std::vector<Read> reads) {
    for (const Read& read : reads) read.check();
    const auto slot = state_->ring.claim();
    if (!slot) throw Closed();
    const std::size_t parts = reads.size();
    state_->reads[*slot] = std::move(reads);
    state_->ring.submit(*slot, parts);
}

std::optional<Ring::Failure> Prefetcher::take() {
    if (pending() == 0) throw std::logic_error("no batch is pending");
    auto finished = state_->ring.take();
    if (!finished) throw Closed();
    return std::move(finished->failure);
}

void Prefetcher::close() {
    state_->ring.shutdown();
    std::lock_guard lock(closing_);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
}

void Prefetcher::work(State& state) {
    Reader reader;
    while (const auto unit = state.ring.next()) {
        std::string error;
        try {
            reader(state.reads[unit->slot][unit->part]);
        } catch (const std::exception& e) {
            error = e.what();
        }
        state.ring.done(*unit, std::move(error));
    }
}

}  // namespace viv1t
