// y = (x - subtract) * scale over a run of floats, told whether all x are finite.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace viv1t {

// Neither NaN nor infinite; unlike std::isfinite it is vectorised.
inline bool finite(float x) { return (std::bit_cast<std::uint32_t>(x) & 0x7f800000u) != 0x7f800000u; }

namespace detail {

constexpr std::int64_t kLine = 16;              // floats of a cache line
constexpr std::int64_t kStreamed = 16 * kLine;  // in shorter runs the ends, which share their lines, would cost too much

// Stores a line, aligned, past the caches: batches are larger than these and are used later.
inline void stream_line(const float* from, float* to) {
#if defined(__AVX__)
    for (std::int64_t k = 0; k < kLine; k += 8) _mm256_stream_ps(to + k, _mm256_loadu_ps(from + k));
#elif defined(__SSE2__)
    for (std::int64_t k = 0; k < kLine; k += 4) _mm_stream_ps(to + k, _mm_loadu_ps(from + k));
#else
    std::memcpy(to, from, kLine * sizeof(float));
#endif
}

// Brings the line of table[i] to the caches; beyond the table's end it does no harm.
inline void fetch(const float* table, std::int64_t i) {
    const auto address = reinterpret_cast<std::uintptr_t>(table) + static_cast<std::uintptr_t>(i) * sizeof(float);
    __builtin_prefetch(reinterpret_cast<const void*>(address));
}

template <class Value> bool each(const float* x, float* y, std::int64_t first, std::int64_t last, Value value) {
    int odd = 0;
    for (std::int64_t i = first; i < last; ++i) {
        odd |= !finite(x[i]);
        y[i] = value(x[i], i);
    }
    return !odd;
}

template <class Value, class Fetch>
bool each_streamed(const float* x, float* y, std::int64_t count, Value value, Fetch fetch) {
    const auto before = static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(y) / sizeof(float) % kLine);
    const std::int64_t head = std::min(count, before), tail = head + (count - head) / kLine * kLine;
    int odd[kLine] = {};
    for (std::int64_t i = head; i < tail; i += kLine) {
        fetch(i);
        float line[kLine];
        for (std::int64_t k = 0; k < kLine; ++k) {
            odd[k] |= !finite(x[i + k]);
            line[k] = value(x[i + k], i + k);
        }
        stream_line(line, y + i);
    }
    const bool ends = each(x, y, 0, head, value) & each(x, y, tail, count, value);
    return ends && std::none_of(odd, odd + kLine, [](int o) { return o != 0; });
}

}  // namespace detail

// Either table may be absent; they hold one value for all, or one for each element, fetched `ahead` elements before they
// are used. With kStream, other threads may not look at y before `streams_end`.
template <bool kOneValue, bool kStream>
bool affine(
    const float* x, const float* subtract, const float* scale, float* y, std::int64_t count, std::int64_t ahead) {
    const auto fetch = [=](std::int64_t i) {
        if (kOneValue) return;
        if (subtract) detail::fetch(subtract, i + ahead);
        if (scale) detail::fetch(scale, i + ahead);
    };
    const auto run = [&](auto value) {
        if (kStream && count >= detail::kStreamed) return detail::each_streamed(x, y, count, value, fetch);
        for (std::int64_t i = 0; i < count; i += detail::kLine) fetch(i);
        return detail::each(x, y, 0, count, value);
    };
    const auto at = [](std::int64_t i) { return kOneValue ? 0 : i; };
    if (subtract && scale) return run([=](float v, std::int64_t i) { return (v - subtract[at(i)]) * scale[at(i)]; });
    if (subtract) return run([=](float v, std::int64_t i) { return v - subtract[at(i)]; });
    if (scale) return run([=](float v, std::int64_t i) { return v * scale[at(i)]; });
    return run([](float v, std::int64_t) { return v; });
}

// Orders what was stored past the caches before what this thread stores next.
inline void streams_end() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

}  // namespace viv1t
