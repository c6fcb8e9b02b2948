// The ring and the prefetcher under many threads, with shutdown at any moment. Built with a sanitizer by test_stress.py;
// exits with 1 and a message when a promise is broken.
//
//   stress ROUNDS FOLDER
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "prefetcher.h"

using namespace viv1t;

namespace {

void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "broken: %s\n", what);
    std::_Exit(1);
}

constexpr int kThreads = 16, kSlots = 4;  // at most

int below(std::mt19937& random, int n) { return std::uniform_int_distribution<int>(0, n - 1)(random); }

// Batches of 0 to 5 parts, some failing; every part is done once, batches come back in order, shut down in the middle of it.
void ring_round(std::mt19937& random) {
    const auto slots = static_cast<std::size_t>(1 + below(random, kSlots));
    const int batches = 40, stop_at = below(random, 2 * batches);
    Ring ring(slots);
    std::vector<std::vector<int>> work(slots);  // one number a part, not atomic: the ring must order the accesses
    std::vector<std::thread> workers;
    const int count = 1 + below(random, kThreads);
    for (int i = 0; i < count; ++i)
        workers.emplace_back([&] {
            while (const auto unit = ring.next()) {
                int& cell = work[unit->slot][unit->part];
                const bool fails = cell % 3 == 0;
                cell = -cell - 1;
                ring.done(*unit, fails ? "part " + std::to_string(unit->part) : "");
            }
        });
    std::atomic<int> taken{0};
    std::thread stopper([&] {
        while (taken.load() < stop_at && taken.load() < batches) std::this_thread::yield();
        if (stop_at < batches) ring.shutdown();
    });

    std::vector<std::vector<int>> expected(slots);
    std::vector<std::size_t> order;
    std::size_t first = 0;
    bool stopped = false;
    const auto take = [&] {
        const auto finished = ring.take();
        if (!finished) return false;
        const std::size_t slot = order[first++];
        require(finished->slot == slot, "batches are delivered in the order submitted");
        std::size_t failing = expected[slot].size();
        for (std::size_t i = 0; i < expected[slot].size(); ++i) {
            require(work[slot][i] == -expected[slot][i] - 1, "every part is done exactly once before delivery");
            if (expected[slot][i] % 3 == 0 && failing == expected[slot].size()) failing = i;
        }
        require(finished->failure.has_value() == (failing < expected[slot].size()), "failures are told");
        if (finished->failure)
            require(finished->failure->part == failing && finished->failure->message == "part " + std::to_string(failing),
                    "the failure told is that of the first part");
        taken.fetch_add(1);
        return true;
    };
    for (int submitted = 0; submitted < batches && !stopped; ++submitted) {
        while (ring.pending() == slots && !stopped) stopped = !take();
        if (stopped) break;
        const auto slot = ring.claim();
        if (!slot) { stopped = true; break; }
        work[*slot].assign(static_cast<std::size_t>(below(random, 6)), 0);
        for (int& cell : work[*slot]) cell = below(random, 1000);
        expected[*slot] = work[*slot];
        order.push_back(*slot);
        ring.submit(*slot, work[*slot].size());
    }
    while (!stopped && ring.pending() > 0) stopped = !take();
    require(stopped || first == static_cast<std::size_t>(batches), "everything is delivered unless shut down");
    ring.shutdown();
    require(!ring.claim() && !ring.take() && !ring.next(), "nothing is handed out after shutdown");
    for (auto& worker : workers) worker.join();
    stopper.join();
}

// An owner who submits faster than it takes waits in claim; another thread takes over the taking or shuts down.
void back_pressure_round(std::mt19937& random) {
    Ring ring(2);
    std::atomic<int> claimed{0};
    std::thread owner([&] {
        while (const auto slot = ring.claim()) {
            claimed.fetch_add(1);
            ring.submit(*slot, 0);
        }
    });
    while (claimed.load() < 2) std::this_thread::yield();
    for (int i = below(random, 3); i > 0; --i) ring.take();
    require(claimed.load() <= 4, "no more batches are claimed than there are slots");
    ring.shutdown();
    owner.join();
}

std::string write_file(const std::string& folder, int rows, int frames) {
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(rows) + ", " +
                         std::to_string(frames) + "), }";
    header.resize(117, ' ');
    header += '\n';
    const std::string path = folder + "/rows.npy";
    std::FILE* file = std::fopen(path.c_str(), "wb");
    require(file != nullptr, "the folder can be written to");
    const unsigned char magic[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, 118, 0};
    std::fwrite(magic, 1, sizeof magic, file);
    std::fwrite(header.data(), 1, header.size(), file);
    for (int i = 0; i < rows * frames; ++i) {
        const float value = static_cast<float>(i);
        std::fwrite(&value, sizeof value, 1, file);
    }
    std::fclose(file);
    return path;
}

// Crops of a file, in either layout, into slots that are used again and again, closed or destroyed while reads are under way.
void prefetcher_round(std::mt19937& random, const std::string& path, int rows, int frames) {
    const std::size_t slots = static_cast<std::size_t>(1 + below(random, kSlots)), parts = 4;
    const auto size = static_cast<std::size_t>(rows * frames);
    std::vector<std::vector<float>> memory(slots, std::vector<float>(parts * size));
    std::vector<int> starts(slots);
    const bool frames_first = below(random, 2) != 0;
    std::thread closer;
    {
        Prefetcher prefetcher(static_cast<std::size_t>(1 + below(random, kThreads)), slots);
        if (below(random, 2)) {
            const auto pause = std::chrono::microseconds(below(random, 2000));
            closer = std::thread([&prefetcher, pause] {
                std::this_thread::sleep_for(pause);
                prefetcher.close();
            });
        }
        const std::size_t batches = static_cast<std::size_t>(below(random, 20));
        std::size_t taken = 0;
        const auto take = [&] {
            const auto failure = prefetcher.take();
            const std::size_t slot = taken++ % slots;
            require(failure.has_value() == (starts[slot] == 0), "a missing file is told");
            if (failure) return;
            for (std::size_t p = 0; p < parts; ++p)
                for (int r = 0; r < rows; ++r)
                    for (int t = 0; t < frames - 10; ++t)
                        require(memory[slot][p * size + static_cast<std::size_t>(frames_first ? t * rows + r : r * frames + t)] ==
                                    static_cast<float>(r * frames + t + starts[slot]),
                                "rows hold what the file holds");
        };
        try {
            for (std::size_t b = 0; b < batches; ++b) {
                if (prefetcher.pending() == slots) take();
                const std::size_t slot = b % slots;
                starts[slot] = below(random, 10);
                std::vector<Read> reads(parts);
                for (std::size_t p = 0; p < parts; ++p)
                    reads[p] = Read{.path = starts[slot] ? path : "/nowhere", .rows = {rows}, .file_frames = frames,
                                    .first_frame = starts[slot], .frames = frames - 10, .transform = {},
                                    .out = memory[slot].data() + p * size, .out_frames_first = frames_first, .out_frames = frames};
                prefetcher.submit(std::move(reads));
            }
            while (below(random, 10) && prefetcher.pending()) take();
        } catch (const Closed&) {
        }
        if (closer.joinable()) closer.join();
    }
}

}  // namespace

int main(int count, char** arguments) {
    require(count == 3, "two arguments");
    const int rounds = std::atoi(arguments[1]);
    const std::string path = write_file(arguments[2], 37, 110);
    std::mt19937 random(7);
    for (int i = 0; i < rounds; ++i) {
        ring_round(random);
        back_pressure_round(random);
        prefetcher_round(random, path, 37, 110);
    }
    std::printf("%d rounds\n", rounds);
}
