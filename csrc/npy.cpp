#include "npy.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

namespace viv1t {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kMaxDims = 32;

struct DtypeName {
    std::string_view name;
    Dtype dtype;
};
constexpr std::array<DtypeName, 12> kDtypes = {{
    {"f2", Dtype::f16}, {"f4", Dtype::f32}, {"f8", Dtype::f64}, {"i1", Dtype::i8}, {"i2", Dtype::i16},
    {"i4", Dtype::i32}, {"i8", Dtype::i64}, {"u1", Dtype::u8}, {"u2", Dtype::u16}, {"u4", Dtype::u32},
    {"u8", Dtype::u64}, {"b1", Dtype::boolean},
}};

// The header is a Python dictionary literal. This reads the one form that NumPy writes, spacing apart:
// string keys, a string, a boolean and a tuple of integers. Everything else is refused.
class Literal {
public:
    explicit Literal(std::string_view text) : text_(text) {}

    void parse(NpyHeader& header) {
        bool has_descr = false, has_order = false, has_shape = false;
        expect('{');
        while (!accept('}')) {
            const std::string_view key = string();
            expect(':');
            if (key == "descr" && !std::exchange(has_descr, true)) {
                descr(header);
            } else if (key == "fortran_order" && !std::exchange(has_order, true)) {
                header.fortran_order = boolean();
            } else if (key == "shape" && !std::exchange(has_shape, true)) {
                header.shape = tuple();
            } else {
                throw NpyError("the .npy header has an unexpected key '" + std::string(key.substr(0, 32)) + "'");
            }
            if (!accept(',')) {
                expect('}');
                break;
            }
        }
        if (!has_descr || !has_order || !has_shape)
            throw NpyError("the .npy header lacks one of the keys 'descr', 'fortran_order', 'shape'");
        skip_spaces();
        if (at_ < text_.size() && text_[at_] == '\n') ++at_;
        if (at_ != text_.size()) fail();
    }

private:
    [[noreturn]] void fail() const {
        throw NpyError("the .npy header is malformed at character " + std::to_string(at_));
    }
    void skip_spaces() {
        while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    }
    bool accept(char wanted) {
        skip_spaces();
        if (at_ >= text_.size() || text_[at_] != wanted) return false;
        ++at_;
        return true;
    }
    void expect(char wanted) {
        if (!accept(wanted)) fail();
    }

    std::string_view string() {
        skip_spaces();
        if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) fail();
        const char quote = text_[at_++];
        const std::size_t start = at_;
        while (at_ < text_.size() && text_[at_] != quote) {
            const char c = text_[at_];
            if (c == '\\' || c < ' ' || c > '~') fail();
            ++at_;
        }
        if (at_ >= text_.size()) fail();
        return text_.substr(start, at_++ - start);
    }

    bool boolean() {
        skip_spaces();
        for (const auto& [word, value] : {std::pair{std::string_view("True"), true}, {"False", false}}) {
            if (text_.substr(at_, word.size()) == word) {
                at_ += word.size();
                return value;
            }
        }
        fail();
    }

    std::int64_t integer() {
        skip_spaces();
        const std::size_t start = at_;
        std::int64_t value = 0;
        while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
            const int digit = text_[at_] - '0';
            if (value > (std::numeric_limits<std::int64_t>::max() - digit) / 10)
                throw NpyError("the .npy header's shape is too large");
            value = value * 10 + digit;
            ++at_;
        }
        const bool leading_zero = at_ - start > 1 && text_[start] == '0';
        if (at_ == start || leading_zero) fail();
        return value;
    }

    std::vector<std::int64_t> tuple() {
        std::vector<std::int64_t> values;
        expect('(');
        while (!accept(')')) {
            if (values.size() == kMaxDims) throw NpyError("the .npy header's shape has more than 32 axes");
            values.push_back(integer());
            if (accept(',')) continue;
            if (values.size() == 1) fail();  // `(3)` is an integer, not a tuple
            expect(')');
            break;
        }
        return values;
    }

    void descr(NpyHeader& header) {
        const std::string_view name = string();
        if (name.size() == 3 && (name[0] == '<' || name[0] == '>' || name[0] == '|')) {
            const auto* found = std::find_if(kDtypes.begin(), kDtypes.end(),
                                             [&](const DtypeName& d) { return d.name == name.substr(1); });
            if (found != kDtypes.end() && (name[0] != '|' || item_size(found->dtype) == 1)) {
                header.dtype = found->dtype;
                header.big_endian = name[0] == '>' && item_size(found->dtype) > 1;
                return;
            }
        }
        throw NpyError("the .npy dtype '" + std::string(name.substr(0, 32)) +
                       "' is not supported; expected floating point, integer or bool");
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

// Elements of the shape times the item size, if it fits a signed 64-bit number; zero axes count as one, so that
// a shape that could never be addressed is refused even when it is empty.
bool addressable(const NpyHeader& header) {
    std::uint64_t bytes = item_size(header.dtype);
    for (const std::int64_t dim : header.shape) {
        const auto n = static_cast<std::uint64_t>(std::max<std::int64_t>(dim, 1));
        if (bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / n) return false;
        bytes *= n;
    }
    return true;
}

}  // namespace

std::size_t item_size(Dtype dtype) {
    switch (dtype) {
        case Dtype::i8: case Dtype::u8: case Dtype::boolean: return 1;
        case Dtype::f16: case Dtype::i16: case Dtype::u16: return 2;
        case Dtype::f32: case Dtype::i32: case Dtype::u32: return 4;
        case Dtype::f64: case Dtype::i64: case Dtype::u64: return 8;
    }
    return 0;
}

std::int64_t NpyHeader::size() const {
    std::int64_t count = 1;
    for (const std::int64_t dim : shape) count *= dim;
    return count;
}

NpyHeader parse_npy_header(std::span<const std::byte> head, std::uint64_t file_bytes) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(head.data());
    const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
    if (text.size() < 10 || text.substr(0, kMagic.size()) != kMagic)
        throw NpyError("not a .npy file: it does not begin with the NumPy magic string");
    const int major = bytes[6], minor = bytes[7];
    if (major < 1 || major > 3 || minor != 0)
        throw NpyError("the .npy format version " + std::to_string(major) + "." + std::to_string(minor) +
                       " is not known; expected 1.0, 2.0 or 3.0");
    const std::size_t start = major == 1 ? 10 : 12;
    std::uint64_t length = bytes[8] | bytes[9] << 8;
    if (major > 1) {
        if (text.size() < start) throw NpyError("the .npy header is cut short");
        length |= static_cast<std::uint64_t>(bytes[10]) << 16 | static_cast<std::uint64_t>(bytes[11]) << 24;
    }
    if (length > kMaxNpyHeader - 12)
        throw NpyError("the .npy header says it is " + std::to_string(length) + " bytes long; at most 10000 are read");
    if (text.size() < start + length) throw NpyError("the .npy header is cut short");

    NpyHeader header;
    header.data_offset = start + length;
    Literal(text.substr(start, length)).parse(header);
    if (!addressable(header)) throw NpyError("the .npy header's shape is too large");
    if (header.data_bytes() > file_bytes - header.data_offset)
        throw NpyError("the file is cut short: its header promises " + std::to_string(header.data_bytes()) +
                       " bytes of data, " + std::to_string(file_bytes - header.data_offset) + " are there");
    return header;
}

NpyHeader read_npy_header(int fd) {
    struct stat info {};
    if (fstat(fd, &info) != 0) throw NpyError(std::string("cannot be examined: ") + std::strerror(errno));
    if (!S_ISREG(info.st_mode)) throw NpyError("not a regular file");
    std::array<std::byte, kMaxNpyHeader> head;
    std::size_t got = 0;
    while (got < head.size()) {
        const ssize_t n = pread(fd, head.data() + got, head.size() - got, static_cast<off_t>(got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) throw NpyError(std::string("cannot be read: ") + std::strerror(errno));
        if (n == 0) break;
        got += static_cast<std::size_t>(n);
    }
    // A file that grows meanwhile must not make the head longer than the file.
    const auto file_bytes = std::max<std::uint64_t>(static_cast<std::uint64_t>(info.st_size), got);
    return parse_npy_header({head.data(), got}, file_bytes);
}

}  // namespace viv1t
