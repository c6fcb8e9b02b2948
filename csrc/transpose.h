// Transposition of a block of floats, eight by eight in registers.
#pragma once

#include <cstdint>
#include <cstring>

namespace viv1t {

namespace detail {

#if __has_builtin(__builtin_shufflevector)

using Eight = float __attribute__((vector_size(32)));

inline Eight load(const float* from) {
    Eight x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline void transpose8(const float* from, std::int64_t from_pitch, float* to, std::int64_t to_pitch) {
    Eight a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = load(from + i * from_pitch);
    for (int i = 0; i < 8; i += 2) {  // neighbours interleaved within each half
        b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = __builtin_shufflevector(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[i + 2 * j + 1] = __builtin_shufflevector(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; ++i) {
        b[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        b[i + 4] = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int i = 0; i < 8; ++i) std::memcpy(to + i * to_pitch, &b[i], sizeof b[i]);
}

#else

inline void transpose8(const float* from, std::int64_t from_pitch, float* to, std::int64_t to_pitch) {
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 8; ++j) to[j * to_pitch + i] = from[i * from_pitch + j];
}

#endif

}  // namespace detail

// to[b * to_pitch + a] = from[a * from_pitch + b] for a < rows, b < columns.
inline void transpose(
    const float* from, std::int64_t from_pitch, float* to, std::int64_t to_pitch, std::int64_t rows, std::int64_t columns) {
    const std::int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
    for (std::int64_t a = 0; a < whole_rows; a += 8)
        for (std::int64_t b = 0; b < whole_columns; b += 8)
            detail::transpose8(from + a * from_pitch + b, from_pitch, to + b * to_pitch + a, to_pitch);
    for (std::int64_t a = 0; a < rows; ++a)
        for (std::int64_t b = a < whole_rows ? whole_columns : 0; b < columns; ++b) to[b * to_pitch + a] = from[a * from_pitch + b];
}

}  // namespace viv1t
