// A fixed ring of batch slots. One thread claims slots and takes them back finished, in the order they were claimed;
// any number of workers do the parts of each. No Python, no torch, no memory of its own beyond the bookkeeping.
//
//   free --claim--> filling --last part done--> ready --take--> free
//
// A claim waits for a free slot, which is the back-pressure; shutdown wakes everyone at any moment.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace viv1t {

class Ring {
public:
    // A unit of work: one part of the batch in a slot.
    struct Unit {
        std::size_t slot;
        std::size_t part;
    };
    struct Failure {
        std::size_t part;
        std::string message;
    };
    // A finished batch. If parts failed, the one with the lowest number, so that the error does not depend on timing.
    struct Finished {
        std::size_t slot;
        std::optional<Failure> failure;
    };

    explicit Ring(std::size_t slots);  // at least 1

    // Owner: waits for a free slot. Nothing after shutdown.
    std::optional<std::size_t> claim();
    // Owner: hands a claimed slot with `parts` units of work (possibly 0) to the workers.
    void submit(std::size_t slot, std::size_t parts);
    // Owner: waits for the oldest submitted slot to be finished and frees it. Nothing when none is submitted, or after
    // shutdown.
    std::optional<Finished> take();
    // Owner: submitted slots not yet taken.
    std::size_t pending() const;

    // Worker: waits for a unit, oldest slot first. Nothing after shutdown.
    std::optional<Unit> next();
    // Worker: the unit is done; `error` is empty when it went well.
    void done(Unit unit, std::string error = {});

    // Anyone, any number of times: wakes everyone. Units being worked on are finished by their workers, others are dropped.
    void shutdown();

private:
    struct Slot {
        std::size_t parts = 0;
        std::size_t handed_out = 0;
        std::size_t finished = 0;
        std::optional<Failure> failure;
    };

    mutable std::mutex mutex_;
    std::condition_variable freed_, work_, ready_;
    std::vector<Slot> slots_;
    std::vector<std::size_t> free_;
    std::deque<std::size_t> submitted_;  // oldest first
    std::size_t drained_ = 0;            // leading entries of submitted_ with no unit left to hand out
    bool down_ = false;
};

}  // namespace viv1t
