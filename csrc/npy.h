// Reading the header of a .npy file: bounded, strict, and never more permissive than
// numpy.load(allow_pickle=False). No Python, no torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace viv1t {

// What is wrong with a file, without its name: the caller knows it.
struct NpyError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Dtype : std::uint8_t { f16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, boolean };

std::size_t item_size(Dtype dtype);

struct NpyHeader {
    Dtype dtype = Dtype::f32;
    bool big_endian = false;
    bool fortran_order = false;  // first axis fastest
    std::vector<std::int64_t> shape;
    std::uint64_t data_offset = 0;  // bytes from the start of the file

    std::int64_t size() const;  // elements
    std::uint64_t data_bytes() const { return static_cast<std::uint64_t>(size()) * item_size(dtype); }
};

// The most a header can take: magic, version, length, and the 10,000 characters numpy.load allows.
inline constexpr std::size_t kMaxNpyHeader = 12 + 10'000;

// Parses the header at the start of a file. `head` holds the file's first min(file_bytes, kMaxNpyHeader) bytes.
// Throws NpyError when the header is malformed, of an unsupported dtype, or promises more data than the file holds.
NpyHeader parse_npy_header(std::span<const std::byte> head, std::uint64_t file_bytes);

// The same for an open file. Throws NpyError, also when reading fails.
NpyHeader read_npy_header(int fd);

}  // namespace viv1t
