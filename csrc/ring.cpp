#include "ring.h"

#include <numeric>
#include <stdexcept>
#include <utility>

namespace viv1t {

Ring::Ring(std::size_t slots) : slots_(slots), free_(slots) {
    if (slots == 0) throw std::invalid_argument("a ring needs at least one slot");
    std::iota(free_.rbegin(), free_.rend(), std::size_t{0});
}

std::optional<std::size_t> Ring::claim() {
    std::unique_lock lock(mutex_);
    freed_.wait(lock, [&] { return down_ || !free_.empty(); });
    if (down_) return std::nullopt;
    const std::size_t slot = free_.back();
    free_.pop_back();
    return slot;
}

void Ring::submit(std::size_t slot, std::size_t parts) {
    {
        std::lock_guard lock(mutex_);
        slots_[slot] = Slot{.parts = parts, .handed_out = 0, .finished = 0, .failure = std::nullopt};
        submitted_.push_back(slot);
    }
    work_.notify_all();
    ready_.notify_all();  // a batch of no parts is finished already
}

std::optional<Ring::Finished> Ring::take() {
    std::unique_lock lock(mutex_);
    if (submitted_.empty()) return std::nullopt;
    const std::size_t slot = submitted_.front();
    ready_.wait(lock, [&] { return down_ || slots_[slot].finished == slots_[slot].parts; });
    if (down_) return std::nullopt;
    submitted_.pop_front();
    if (drained_ > 0) --drained_;
    free_.push_back(slot);
    Finished finished{slot, std::move(slots_[slot].failure)};
    lock.unlock();
    freed_.notify_one();
    return finished;
}

std::size_t Ring::pending() const {
    std::lock_guard lock(mutex_);
    return submitted_.size();
}

std::optional<Ring::Unit> Ring::next() {
    std::unique_lock lock(mutex_);
    while (true) {
        if (down_) return std::nullopt;
        for (; drained_ < submitted_.size(); ++drained_) {
            const std::size_t index = submitted_[drained_];
            Slot& slot = slots_[index];
            if (slot.handed_out < slot.parts) return Unit{index, slot.handed_out++};
        }
        work_.wait(lock);
    }
}

void Ring::done(Unit unit, std::string error) {
    bool finished = false;
    {
        std::lock_guard lock(mutex_);
        Slot& slot = slots_[unit.slot];
        if (!error.empty() && (!slot.failure || unit.part < slot.failure->part))
            slot.failure = Failure{unit.part, std::move(error)};
        finished = ++slot.finished == slot.parts;
    }
    if (finished) ready_.notify_all();
}

void Ring::shutdown() {
    {
        std::lock_guard lock(mutex_);
        down_ = true;
    }
    freed_.notify_all();
    work_.notify_all();
    ready_.notify_all();
}

}  // namespace viv1t
