// The Python module `viv1t._prefetcher`. Bindings only, no logic.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "npy.h"

namespace py = pybind11;
using namespace viv1t;

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
}
