// Any .npy element type to float32, rounded to nearest as NumPy's astype does, and float32 to elements of fewer bytes.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "npy.h"

namespace viv1t {

using Convert = void (*)(const std::byte* from, float* to, std::int64_t count);

namespace detail {

template <std::size_t Bytes> struct Word;
template <> struct Word<1> { using type = std::uint8_t; };
template <> struct Word<2> { using type = std::uint16_t; };
template <> struct Word<4> { using type = std::uint32_t; };
template <> struct Word<8> { using type = std::uint64_t; };

template <class W> W byteswap(W word) {
    if constexpr (sizeof(W) == 2) return __builtin_bswap16(word);
    else if constexpr (sizeof(W) == 4) return __builtin_bswap32(word);
    else if constexpr (sizeof(W) == 8) return __builtin_bswap64(word);
    else return word;
}

struct Half {
    std::uint16_t bits;
    explicit operator float() const {
        const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
        const std::uint32_t exponent = bits >> 10 & 0x1fu, fraction = bits & 0x3ffu;
        if (exponent == 0) {  // zero and subnormal numbers: exact in float32
            const float value = static_cast<float>(fraction) * 0x1p-24f;
            return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
        }
        const std::uint32_t wide = exponent == 0x1fu ? 0xffu : exponent + 112;
        return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
    }
};

template <class T, bool Swap> void convert(const std::byte* from, float* to, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        typename Word<sizeof(T)>::type word;
        std::memcpy(&word, from + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
        if constexpr (Swap) word = byteswap(word);
        to[i] = static_cast<float>(std::bit_cast<T>(word));
    }
}

inline void convert_bool(const std::byte* from, float* to, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[i] == std::byte{0} ? 0.0f : 1.0f;
}

template <bool Swap> Convert pick(Dtype dtype) {
    switch (dtype) {
        case Dtype::f16: return convert<Half, Swap>;
        case Dtype::f32: return convert<float, Swap>;
        case Dtype::f64: return convert<double, Swap>;
        case Dtype::i8: return convert<std::int8_t, false>;
        case Dtype::i16: return convert<std::int16_t, Swap>;
        case Dtype::i32: return convert<std::int32_t, Swap>;
        case Dtype::i64: return convert<std::int64_t, Swap>;
        case Dtype::u8: return convert<std::uint8_t, false>;
        case Dtype::u16: return convert<std::uint16_t, Swap>;
        case Dtype::u32: return convert<std::uint32_t, Swap>;
        case Dtype::u64: return convert<std::uint64_t, Swap>;
        case Dtype::boolean: return convert_bool;
    }
    return nullptr;
}

}  // namespace detail

inline bool needs_swap(const NpyHeader& header) {
    return item_size(header.dtype) > 1 && header.big_endian != (std::endian::native == std::endian::big);
}

inline Convert converter(const NpyHeader& header) {
    return needs_swap(header) ? detail::pick<true>(header.dtype) : detail::pick<false>(header.dtype);
}

// bf16 rounded to nearest even, of finite values.
inline void store_bf16(const float* from, std::byte* to, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        const auto bits = std::bit_cast<std::uint32_t>(from[i]);
        const auto rounded = static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
        std::memcpy(to + 2 * i, &rounded, 2);
    }
}

// Whole numbers from 0 to 255; returns how many there are before the first that is none.
inline std::int64_t store_u8(const float* from, std::byte* to, std::int64_t count) {
    std::int32_t odd = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        const float most = from[i] < 255.0f ? from[i] : 255.0f;
        const auto value = static_cast<std::int32_t>(most > 0.0f ? most : 0.0f);
        odd |= static_cast<float>(value) != from[i];
        const auto byte = static_cast<std::uint8_t>(value);
        std::memcpy(to + i, &byte, 1);
    }
    if (!odd) return count;
    std::int64_t i = 0;
    while (static_cast<float>(std::to_integer<std::uint8_t>(to[i])) == from[i]) ++i;
    return i;
}

}  // namespace viv1t
