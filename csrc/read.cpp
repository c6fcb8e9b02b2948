#include "read.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "affine.h"
#include "convert.h"
#include "npy.h"
#include "transpose.h"

namespace viv1t {

using std::int64_t;

namespace {

constexpr int64_t kStagingBytes = 1 << 20;    // long reads are faster; more would not stay in the second-level cache
constexpr int64_t kStrip = 32;                // rows that are transposed together: their frames stay in the first-level cache
constexpr int64_t kRows = 256;                // the same where rows are read, if they are short: long runs are stored faster
constexpr int64_t kStagedFrames = 320;        // of all rows, staged together
constexpr int64_t kLongRow = 64 << 10;        // bytes of a row from which only the frames wanted are read
constexpr int64_t kAhead = 512;               // elements by which tables are fetched ahead where whole frames are finished
constexpr int64_t kRunsAhead = 4;             // elsewhere: rows, or frames

template <class T> T* grown(std::vector<T>& scratch, int64_t size) {
    if (scratch.size() < static_cast<std::size_t>(size)) scratch.resize(static_cast<std::size_t>(size));
    return scratch.data();
}

// Frames of (W, H) to frames of (H, W).
template <class Word> void turn(const std::byte* from, std::byte* to, int64_t frames, int64_t height, int64_t width) {
    constexpr auto size = static_cast<int64_t>(sizeof(Word));
    for (int64_t k = 0; k < frames; ++k)
        for (int64_t h = 0; h < height; ++h)
            for (int64_t w = 0; w < width; ++w)
                std::memcpy(to + ((k * height + h) * width + w) * size, from + ((k * width + w) * height + h) * size, sizeof(Word));
}

std::string words(const std::vector<int64_t>& shape) {
    std::string text = "(";
    for (const int64_t n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
    return text + ")";
}

}  // namespace

class Reader::File {
public:
    explicit File(const std::string& path) : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {  // waits for no pipe
        if (fd_ < 0) throw std::runtime_error(std::string("cannot be opened: ") + std::strerror(errno));
    }
    ~File() { close(fd_); }
    File(const File&) = delete;
    File& operator=(const File&) = delete;

    int fd() const { return fd_; }

    void read(void* to, int64_t bytes, std::uint64_t offset) const {
        auto* at = static_cast<std::byte*>(to);
        while (bytes > 0) {
            const ssize_t n = pread(fd_, at, static_cast<std::size_t>(bytes), static_cast<off_t>(offset));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) throw std::runtime_error(std::string("cannot be read: ") + std::strerror(errno));
            if (n == 0) throw std::runtime_error("the file is cut short");
            at += n;
            bytes -= n;
            offset += static_cast<std::uint64_t>(n);
        }
    }

private:
    int fd_;
};

// Where the output's elements lie and what is done to them. The output is (outer, inner) with the inner axis contiguous:
// (frames, rows) or (rows, frames).
class Reader::Output {
public:
    Output(const Read& read, bool whole_frames, std::vector<float>& line)
        : read_(read), item_(static_cast<int64_t>(item_size(read.element))) {
        const Transform& t = read.transform;
        const int64_t rows = read.row_count();
        pitch_ = read.out_frames_first ? rows : read.out_frames;
        outer_ = read.out_frames_first ? read.frames : rows;
        inner_ = read.out_frames_first ? rows : read.frames;
        if (read.element != Element::f32) line_ = grown(line, inner_);
        int64_t base = 0;
        if (t.frames > 0) {
            table_pitch_ = read.out_frames_first ? rows : t.frames;
            base = read.first_frame * (read.out_frames_first ? rows : 1);
        } else if (!read.out_frames_first) {
            table_pitch_ = 1;
            one_value_ = true;  // the same for all frames of a row
        }
        ahead_ = whole_frames ? kAhead : kRunsAhead * table_pitch_;
        subtract_ = t.subtract ? t.subtract + base : nullptr;
        scale_ = t.scale ? t.scale + base : nullptr;
    }

    ~Output() { streams_end(); }
    Output(const Output&) = delete;
    Output& operator=(const Output&) = delete;

    std::byte* at(int64_t outer, int64_t inner) const {
        return static_cast<std::byte*>(read_.out) + (outer * pitch_ + inner) * item_;
    }

    // Checks and transforms `count` elements as read from the file, and stores them.
    void finish(const float* x, int64_t outer, int64_t inner, int64_t count) const {
        const int64_t table = outer * table_pitch_ + (one_value_ ? 0 : inner);
        const float* const subtract = subtract_ ? subtract_ + table : nullptr;
        const float* const scale = scale_ ? scale_ + table : nullptr;
        float* const y = line_ ? line_ : reinterpret_cast<float*>(at(outer, inner));
        const auto run = line_ ? (one_value_ ? affine<true, false> : affine<false, false>)
                               : (one_value_ ? affine<true, true> : affine<false, true>);
        const bool all_finite = run(x, subtract, scale, y, count, ahead_);
        if (!all_finite) throw std::runtime_error("NaN or infinity" + where(outer, inner, std::find_if_not(x, x + count, finite) - x));
        if (read_.element == Element::bf16) {
            store_bf16(y, at(outer, inner), count);
        } else if (read_.element == Element::u8) {
            const int64_t stored = store_u8(y, at(outer, inner), count);
            if (stored < count)
                throw std::runtime_error(std::to_string(y[stored]) + where(outer, inner, stored) + ", which uint8 cannot hold");
        }
    }

    void zero_padding() {
        const auto left = static_cast<std::size_t>((read_.out_frames - read_.frames) * item_);
        if (left == 0) return;
        if (read_.out_frames_first)
            std::memset(at(outer_, 0), 0, left * static_cast<std::size_t>(pitch_));
        else
            for (int64_t r = 0; r < outer_; ++r) std::memset(at(r, inner_), 0, left);
    }

private:
    std::string where(int64_t outer, int64_t inner, int64_t ahead) const {
        return " at frame " + std::to_string(read_.first_frame + (read_.out_frames_first ? outer : inner + ahead));
    }

    const Read& read_;
    const int64_t item_;
    float* line_ = nullptr;
    const float* subtract_ = nullptr;
    const float* scale_ = nullptr;
    bool one_value_ = false;
    int64_t pitch_ = 0, outer_ = 0, inner_ = 0, table_pitch_ = 0, ahead_ = 0;
};

// The array's place in the file and how its elements become floats.
struct Reader::Source {
    std::uint64_t start = 0;      // bytes before its first element
    int64_t item = 0;             // bytes of an element
    bool frames_first = false;    // each frame's rows lie together
    bool pixels_turned = false;   // ... in the order (W, H)
    bool as_is = false;           // its bytes are those of the output
    bool floats = false;          // its elements are float32 of this machine
    Convert convert = nullptr;

    std::uint64_t offset(int64_t element) const { return start + static_cast<std::uint64_t>(element * item); }
};

Reader::Source Reader::locate(const Read& read, const NpyHeader& header) {
    const bool stacked = read.trial >= 0;
    std::vector<int64_t> one = read.rows;
    one.insert(read.frames_first ? one.begin() : one.end(), read.file_frames);
    std::vector<int64_t> found = header.shape;
    const bool there = !stacked || (!found.empty() && read.trial < found[0]);
    if (stacked && !found.empty()) found.erase(found.begin());
    if (!there || found != one)
        throw std::runtime_error("expected shape " + words(one) + (stacked ? " at trial " + std::to_string(read.trial) : "") +
                                 ", found shape " + words(header.shape));
    Source source;
    source.item = static_cast<int64_t>(item_size(header.dtype));
    source.frames_first = read.frames_first;
    source.convert = converter(header);
    source.start = header.data_offset;
    if (stacked) source.start = source.offset(read.trial * read.row_count() * read.file_frames);
    if (header.fortran_order && header.shape.size() > 1) {
        // The axes in memory are those of the shape, backwards.
        if (stacked || read.frames_first || read.rows.size() > 2)
            throw std::runtime_error("is in Fortran order, expected C order; write it again with numpy.ascontiguousarray");
        source.frames_first = true;
        source.pixels_turned = read.rows.size() == 2;
    }
    source.floats = header.dtype == Dtype::f32 && !needs_swap(header);
    source.as_is = header.dtype == Dtype::u8 && read.element == Element::u8 && read.transform.none() && !source.pixels_turned;
    return source;
}

std::size_t item_size(Element element) { return element == Element::f32 ? 4 : element == Element::bf16 ? 2 : 1; }

int64_t Read::row_count() const {
    int64_t count = 1;
    for (const int64_t n : rows) count *= n;
    return count;
}

void Read::check() const {
    const bool sizes = !rows.empty() && std::all_of(rows.begin(), rows.end(), [](int64_t n) { return n > 0; }) &&
                       first_frame >= 0 && frames >= 0 && first_frame + frames <= file_frames && frames <= out_frames &&
                       out != nullptr;
    const bool table = transform.frames == 0 || transform.frames >= first_frame + frames;
    if (!sizes || !table) throw std::invalid_argument("a read whose sizes do not fit each other: " + path);
}

void Reader::operator()(const Read& read) {
    const File file(read.path);
    const NpyHeader header = read_npy_header(file.fd());
    const Source source = locate(read, header);
    Output output(read, source.frames_first && read.out_frames_first, line_);
    if (!source.frames_first)
        from_rows(read, file, source, output);
    else if (read.out_frames_first)
        from_frames_to_frames(read, file, source, output);
    else
        from_frames_to_rows(read, file, source, output);
    output.zero_padding();
}

// The file holds rows of all the recording's frames. They are read whole, since a system call costs more than some
// kilobytes of copying.
void Reader::from_rows(const Read& read, const File& file, const Source& source, Output& output) {
    const int64_t rows = read.row_count(), item = source.item, frames = read.frames;
    const bool whole = read.file_frames * item < kLongRow;
    const int64_t pitch = whole ? read.file_frames : frames;
    const int64_t strip_rows = kRows * pitch * item <= kStagingBytes ? kRows : kStrip;
    const int64_t fit = kStagingBytes / std::max<int64_t>(1, pitch * item) / strip_rows * strip_rows;
    const int64_t step = whole ? std::max(strip_rows, fit) : strip_rows;
    std::byte* const staged = grown(staging_, step * pitch * item);
    float* const strip = source.floats ? nullptr : grown(strip_, (read.out_frames_first ? strip_rows : 1) * frames);
    float* const turned = read.out_frames_first ? grown(transposed_, strip_rows * frames) : nullptr;
    for (int64_t r = 0; r < rows; r += step) {
        const int64_t m = std::min(step, rows - r);
        if (whole) {
            file.read(staged, m * pitch * item, source.offset(r * pitch));
        } else {
            for (int64_t k = 0; k < m; ++k)
                file.read(staged + k * pitch * item, pitch * item, source.offset((r + k) * read.file_frames + read.first_frame));
        }
        const std::byte* const wanted = staged + (whole ? read.first_frame * item : 0);
        const auto floats = [&](int64_t row, float* to) {  // a row's frames
            const std::byte* const from = wanted + row * pitch * item;
            if (source.floats) return reinterpret_cast<const float*>(from);
            source.convert(from, to, frames);
            return static_cast<const float*>(to);
        };
        if (!read.out_frames_first) {
            for (int64_t k = 0; k < m; ++k) output.finish(floats(k, strip), r + k, 0, frames);
            continue;
        }
        for (int64_t k = 0; k < m; k += strip_rows) {
            const int64_t n = std::min(strip_rows, m - k);
            const float* const from = floats(k, strip);
            for (int64_t a = 1; a < n; ++a) floats(k + a, strip + a * frames);
            transpose(from, source.floats ? pitch : frames, turned, strip_rows, n, frames);
            for (int64_t t = 0; t < frames; ++t) output.finish(turned + t * strip_rows, t, r + k, n);
        }
    }
}

void Reader::from_frames_to_frames(const Read& read, const File& file, const Source& source, Output& output) {
    const int64_t rows = read.row_count();
    const int64_t step = std::max<int64_t>(1, kStagingBytes / (rows * source.item));
    float* const line = source.floats ? nullptr : grown(strip_, rows);
    for (int64_t t = 0; t < read.frames; t += step) {
        const int64_t n = std::min(step, read.frames - t);
        if (source.as_is) {
            file.read(output.at(t, 0), n * rows * source.item, source.offset((read.first_frame + t) * rows));
            continue;
        }
        const std::byte* const staged = stage_frames(read, file, source, t, n);
        for (int64_t k = 0; k < n; ++k) {
            const std::byte* const frame = staged + k * rows * source.item;
            if (!source.floats) source.convert(frame, line, rows);
            output.finish(source.floats ? reinterpret_cast<const float*>(frame) : line, t + k, 0, rows);
        }
    }
}

// All rows are staged, since each row's frames lie far apart, and are stored together.
void Reader::from_frames_to_rows(const Read& read, const File& file, const Source& source, Output& output) {
    const int64_t rows = read.row_count(), most = std::min(kStagedFrames, read.frames);
    const bool floats = source.floats;
    float* const strip = floats ? nullptr : grown(strip_, most * kStrip);
    float* const turned = grown(transposed_, kStrip * most);
    for (int64_t t = 0; t < read.frames; t += kStagedFrames) {
        const int64_t n = std::min(kStagedFrames, read.frames - t);
        const std::byte* const staged = stage_frames(read, file, source, t, n);
        for (int64_t r = 0; r < rows; r += kStrip) {
            const int64_t m = std::min(kStrip, rows - r);
            const float* from = reinterpret_cast<const float*>(staged) + r;
            if (!floats) {
                for (int64_t k = 0; k < n; ++k) source.convert(staged + (k * rows + r) * source.item, strip + k * kStrip, m);
                from = strip;
            }
            transpose(from, floats ? rows : kStrip, turned, n, n, m);
            for (int64_t k = 0; k < m; ++k) output.finish(turned + k * n, r + k, t, n);
        }
    }
}

// `n` frames from `t` of the read, as they are in the file but with the pixels in the order (H, W).
const std::byte* Reader::stage_frames(const Read& read, const File& file, const Source& source, int64_t t, int64_t n) {
    const int64_t rows = read.row_count(), bytes = n * rows * source.item;
    std::byte* const staged = grown(staging_, bytes);
    file.read(staged, bytes, source.offset((read.first_frame + t) * rows));
    if (!source.pixels_turned) return staged;
    std::byte* const turned = grown(turned_, bytes);
    switch (source.item) {
        case 1: turn<std::uint8_t>(staged, turned, n, read.rows[0], read.rows[1]); break;
        case 2: turn<std::uint16_t>(staged, turned, n, read.rows[0], read.rows[1]); break;
        case 4: turn<std::uint32_t>(staged, turned, n, read.rows[0], read.rows[1]); break;
        default: turn<std::uint64_t>(staged, turned, n, read.rows[0], read.rows[1]); break;
    }
    return turned;
}

}  // namespace viv1t
