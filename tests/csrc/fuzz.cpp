// Files damaged at random, read with and without regard to what they say. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer by test_stress.py; exits with 1 and a message when a promise is broken.
//
//   fuzz ROUNDS FOLDER
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "npy.h"
#include "read.h"

using namespace viv1t;

namespace {

using Bytes = std::vector<unsigned char>;

void require(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "broken: %s\n", what);
    std::_Exit(1);
}

struct Random {
    std::mt19937 engine{11};
    int below(int n) { return std::uniform_int_distribution<int>(0, n - 1)(engine); }
    template <class T> const T& of(const std::vector<T>& choices) {
        return choices[static_cast<std::size_t>(below(static_cast<int>(choices.size())))];
    }
};

const std::vector<std::string> kKinds = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"};

// What a good file has, and a read that fits it.
struct Case {
    Bytes file;
    Read read;
};

Case good(Random& random) {
    Case made;
    Read& read = made.read;
    read.rows.assign(static_cast<std::size_t>(1 + random.below(2)), 0);
    for (auto& n : read.rows) n = 1 + random.below(20);
    read.file_frames = 1 + random.below(40);
    read.frames_first = random.below(2);
    read.trial = random.below(2) ? random.below(3) : -1;
    std::vector<std::int64_t> shape = read.rows;
    shape.insert(read.frames_first ? shape.begin() : shape.end(), read.file_frames);
    if (read.trial >= 0) shape.insert(shape.begin(), 3);

    const std::string kind = random.of(kKinds), order = random.below(3) ? "<" : ">";
    std::string text = "{'descr': '" + order + kind + "', 'fortran_order': " + (random.below(3) ? "False" : "True") + ", 'shape': (";
    std::int64_t count = 1;
    for (const auto n : shape) {
        text += std::to_string(n) + ", ";
        count *= n;
    }
    text += "), }";
    const int major = 1 + random.below(3);
    const std::size_t start = major == 1 ? 10 : 12;
    text.resize((start + text.size() + 64) / 64 * 64 - start - 1, ' ');
    text += '\n';
    made.file = {0x93, 'N', 'U', 'M', 'P', 'Y', static_cast<unsigned char>(major), 0,
                 static_cast<unsigned char>(text.size()), static_cast<unsigned char>(text.size() >> 8)};
    made.file.resize(start, 0);
    made.file.insert(made.file.end(), text.begin(), text.end());
    const auto bytes = static_cast<std::size_t>(count) * static_cast<std::size_t>(kind[1] - '0');
    for (std::size_t i = 0; i < bytes; ++i) made.file.push_back(static_cast<unsigned char>(random.below(random.below(4) ? 2 : 256)));
    return made;
}

void damage(Random& random, Bytes& file) {
    static const std::string characters = "0123456789(){},:' \n<>|=TrueFalsedshcp_fiub\"\\";
    for (int i = random.below(4); i > 0 && !file.empty(); --i) {
        const int reach = random.below(4) ? std::min<int>(130, static_cast<int>(file.size())) : static_cast<int>(file.size());
        const auto at = random.below(reach);
        switch (random.below(6)) {
            case 0: file[static_cast<std::size_t>(at)] = static_cast<unsigned char>(random.below(256)); break;
            case 1: file[static_cast<std::size_t>(at)] = static_cast<unsigned char>(characters[static_cast<std::size_t>(random.below(static_cast<int>(characters.size())))]); break;
            case 2: file.insert(file.begin() + at, file[static_cast<std::size_t>(random.below(static_cast<int>(file.size())))]); break;
            case 3: file.erase(file.begin() + at); break;
            case 4: std::swap(file[static_cast<std::size_t>(at)], file[static_cast<std::size_t>(random.below(reach))]); break;
            default: file.resize(static_cast<std::size_t>(at)); break;
        }
    }
}

// The header alone, in memory of exactly its length; what is accepted promises no more than there is.
bool header_round(const Bytes& file) {
    const std::size_t length = std::min(file.size(), kMaxNpyHeader);
    const std::vector<unsigned char> head(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length));
    try {
        const NpyHeader header = parse_npy_header(std::as_bytes(std::span(head)), file.size());
        require(header.data_offset <= file.size() && header.data_bytes() <= file.size() - header.data_offset,
                "a header that is accepted promises no more than the file holds");
        return true;
    } catch (const NpyError&) {
        return false;
    }
}

// A read of the file, as it was or at random, into memory of exactly the length that is needed.
bool read_round(Random& random, Reader& reader, const std::string& path, const Bytes& file, Read read) {
    const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    require(descriptor >= 0 && write(descriptor, file.data(), file.size()) == static_cast<ssize_t>(file.size()),
            "the folder can be written to");
    close(descriptor);
    read.path = path;
    read.first_frame = random.below(static_cast<int>(read.file_frames));
    read.frames = random.below(static_cast<int>(read.file_frames - read.first_frame) + 1);
    read.out_frames = read.frames + random.below(3);
    read.out_frames_first = random.below(2);
    read.element = random.of<Element>({Element::f32, Element::bf16, Element::u8});
    const auto rows = static_cast<std::size_t>(read.row_count());
    const bool timed = random.below(2);
    const std::vector<float> table(rows * static_cast<std::size_t>(timed ? read.file_frames : 1), 1.0f);
    if (random.below(2)) read.transform = {random.below(2) ? table.data() : nullptr, table.data(), timed ? read.file_frames : 0};
    std::vector<std::byte> out(rows * static_cast<std::size_t>(read.out_frames) * item_size(read.element));
    read.out = out.empty() ? static_cast<void*>(&out) : out.data();
    read.check();
    try {
        reader(read);
        return true;
    } catch (const std::runtime_error&) {
        return false;
    }
}

}  // namespace

int main(int count, char** arguments) {
    require(count == 3, "two arguments");
    const int rounds = std::atoi(arguments[1]);
    const std::string path = std::string(arguments[2]) + "/fuzzed.npy";
    Random random;
    Reader reader;
    int headers = 0, reads = 0;
    for (int i = 0; i < rounds; ++i) {
        Case made = good(random);
        damage(random, made.file);
        headers += header_round(made.file);
        if (i % 4 == 0) reads += read_round(random, reader, path, made.file, made.read);
    }
    require(headers > rounds / 20 && reads > rounds / 200, "some files are still readable");
    std::printf("%d rounds: %d headers and %d of %d reads succeeded\n", rounds, headers, reads, (rounds + 3) / 4);
}
