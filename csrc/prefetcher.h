// Worker threads that fill batches: each batch is a list of reads into the caller's memory, delivered in the order
// submitted. No Python, no torch.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "read.h"
#include "ring.h"

namespace viv1t {

struct Closed : std::runtime_error {
    Closed() : std::runtime_error("the prefetcher is closed") {}
};

// One thread submits and takes. The memory that a batch's reads write to and take tables from must live until the batch
// is taken or the prefetcher is closed.
class Prefetcher {
public:
    Prefetcher(std::size_t threads, std::size_t slots);
    ~Prefetcher();
    Prefetcher(const Prefetcher&) = delete;
    Prefetcher& operator=(const Prefetcher&) = delete;

    // Waits while all slots are in use. Throws std::invalid_argument for a read that makes no sense, Closed after close.
    void submit(std::vector<Read> reads);

    // Waits for the oldest batch. Returns the first of its reads that failed and why. Throws Closed after close, and
    // std::logic_error when no batch is pending.
    std::optional<Ring::Failure> take();

    std::size_t pending() const { return state_->ring.pending(); }

    // From any thread, at any moment: reads under way are finished, others dropped, and no thread is left.
    void close();

private:
    struct State {
        explicit State(std::size_t slots) : ring(slots), reads(slots) {}
        Ring ring;
        std::vector<std::vector<Read>> reads;  // by slot
    };
    static void work(State& state);

    pid_t owner_;
    std::unique_ptr<State> state_;
    std::mutex closing_;
    std::vector<std::thread> threads_;
};

}  // namespace viv1t
