// One array of one trial, from its file to the caller's memory: cut in time, transformed in float32, in the layout wanted.
// No Python, no torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "npy.h"

namespace viv1t {

// x -> (x - subtract) * scale; either table may be absent. The tables hold one value a row, or, when `frames` is not 0, one
// a row and frame of the recording, laid out like the output.
struct Transform {
    const float* subtract = nullptr;
    const float* scale = nullptr;
    std::int64_t frames = 0;

    bool none() const { return subtract == nullptr && scale == nullptr; }
};

// What the output's elements are: float32, or, in fewer bytes, bf16 rounded to nearest even, or uint8 where the values are
// whole numbers from 0 to 255.
enum class Element : std::uint8_t { f32, bf16, u8 };

std::size_t item_size(Element element);

// An array on disk has axes (rows..., T) or (T, rows...); `rows` counts pixels, neurons or channels together below.
struct Read {
    std::string path;
    std::vector<std::int64_t> rows;  // the axes other than time that the file must have, such as {H, W}
    bool frames_first = false;       // the file's layout
    std::int64_t trial = -1;         // which of the arrays stacked on a leading axis; -1: the file holds one array
    std::int64_t file_frames = 0;    // T
    std::int64_t first_frame = 0;
    std::int64_t frames = 0;         // how many are read
    Transform transform;
    void* out = nullptr;
    Element element = Element::f32;
    bool out_frames_first = false;  // (out_frames, rows) rather than (rows, out_frames)
    std::int64_t out_frames = 0;    // at least `frames`; what is left is set to zero

    std::int64_t row_count() const;
    void check() const;  // throws std::invalid_argument unless the numbers fit each other
};

// Carries out reads; keeps its scratch memory between them, so one per thread.
class Reader {
public:
    // Throws std::runtime_error saying what is wrong with the file (its name left to the caller): missing, malformed, of
    // another shape, cut short, not finite within the frames read, or beyond what the output's elements hold.
    void operator()(const Read& read);

private:
    class File;
    class Output;
    struct Source;

    static Source locate(const Read& read, const NpyHeader& header);
    void from_rows(const Read& read, const File& file, const Source& source, Output& output);
    void from_frames_to_frames(const Read& read, const File& file, const Source& source, Output& output);
    void from_frames_to_rows(const Read& read, const File& file, const Source& source, Output& output);
    const std::byte* stage_frames(const Read& read, const File& file, const Source& source, std::int64_t t, std::int64_t n);

    std::vector<std::byte> staging_, turned_;
    std::vector<float> strip_, transposed_, line_;
};

}  // namespace viv1t
