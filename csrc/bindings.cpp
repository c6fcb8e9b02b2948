// The Python module `viv1t._prefetcher`. Bindings only, no logic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "npy.h"
#include "prefetcher.h"

namespace py = pybind11;
using namespace viv1t;

namespace {

// Memory that Python owns, by its address.
template <class T> T* memory(std::uintptr_t address) { return reinterpret_cast<T*>(address); }

}  // namespace

PYBIND11_MODULE(_prefetcher, m) {
    m.doc() = "Reading trials in C++ threads.";

    py::register_exception<NpyError>(m, "NpyError", PyExc_ValueError);

    py::enum_<Dtype>(m, "Dtype")
        .value("f16", Dtype::f16)
        .value("f32", Dtype::f32)
        .value("f64", Dtype::f64)
        .value("i8", Dtype::i8)
        .value("i16", Dtype::i16)
        .value("i32", Dtype::i32)
        .value("i64", Dtype::i64)
        .value("u8", Dtype::u8)
        .value("u16", Dtype::u16)
        .value("u32", Dtype::u32)
        .value("u64", Dtype::u64)
        .value("boolean", Dtype::boolean);

    py::class_<NpyHeader>(m, "NpyHeader")
        .def_readonly("dtype", &NpyHeader::dtype)
        .def_readonly("big_endian", &NpyHeader::big_endian)
        .def_readonly("fortran_order", &NpyHeader::fortran_order)
        .def_readonly("shape", &NpyHeader::shape)
        .def_readonly("data_offset", &NpyHeader::data_offset);

    m.def(
        "parse_npy_header",
        [](const py::bytes& head, std::uint64_t file_bytes) {
            const std::string_view view(head);
            return parse_npy_header(std::as_bytes(std::span(view)), file_bytes);
        },
        py::arg("head"), py::arg("file_bytes"));
    m.def("read_npy_header", &read_npy_header, py::arg("fd"), py::call_guard<py::gil_scoped_release>());

    py::enum_<Element>(m, "Element").value("f32", Element::f32).value("bf16", Element::bf16).value("u8", Element::u8);

    py::class_<Transform>(m, "Transform")
        .def(py::init([](std::uintptr_t subtract, std::uintptr_t scale, std::int64_t frames) {
                 return Transform{memory<const float>(subtract), memory<const float>(scale), frames};
             }),
             py::kw_only(), py::arg("subtract") = 0, py::arg("scale") = 0, py::arg("frames") = 0);

    py::class_<Read>(m, "Read")
        .def(py::init([](std::string path, std::vector<std::int64_t> rows, bool frames_first, std::int64_t trial,
                         std::int64_t file_frames, std::int64_t first_frame, std::int64_t frames, const Transform& transform,
                         std::uintptr_t out, Element element, bool out_frames_first, std::int64_t out_frames) {
                 return Read{.path = std::move(path),
                             .rows = std::move(rows),
                             .frames_first = frames_first,
                             .trial = trial,
                             .file_frames = file_frames,
                             .first_frame = first_frame,
                             .frames = frames,
                             .transform = transform,
                             .out = memory<void>(out),
                             .element = element,
                             .out_frames_first = out_frames_first,
                             .out_frames = out_frames};
             }),
             py::kw_only(), py::arg("path"), py::arg("rows"), py::arg("frames_first") = false, py::arg("trial") = -1,
             py::arg("file_frames"), py::arg("first_frame") = 0, py::arg("frames"), py::arg("transform") = Transform{},
             py::arg("out"), py::arg("element") = Element::f32, py::arg("out_frames_first") = false, py::arg("out_frames"));

    py::register_exception<Closed>(m, "Closed", PyExc_RuntimeError);
    py::class_<Prefetcher>(m, "Prefetcher")
        .def(py::init<std::size_t, std::size_t>(), py::arg("threads"), py::arg("slots"))
        .def(
            "submit", [](Prefetcher& self, std::vector<Read> reads) {
                py::gil_scoped_release nogil;
                self.submit(std::move(reads));
            },
            py::arg("reads"))
        .def("take",
             [](Prefetcher& self) -> std::optional<std::pair<std::size_t, std::string>> {
                 py::gil_scoped_release nogil;
                 auto failure = self.take();
                 if (!failure) return std::nullopt;
                 return std::pair{failure->part, std::move(failure->message)};
             })
        .def("pending", &Prefetcher::pending)
        .def("close", &Prefetcher::close, py::call_guard<py::gil_scoped_release>());
}
