"""The harness that benchmarks share, with toy variants, and the subjects at a tiny size."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.figure import number
from benchmarks.harness import ROOT, Report, Work, machine_name, peak_bytes, seconds, torch_threads
from benchmarks.published import Baseline, Checkout
from benchmarks.test_inference import INFERENCE, EngineInference, PublishedInference
from benchmarks.test_step import STEP, EngineStep, PublishedStep
from benchmarks.workload import Size, Subject
from viv1t.model import twin

STEPS = {"viv1t": EngineStep, "published": PublishedStep}
TINY_STEP = Size(
    device="cpu",
    neurons=7,
    frames=12,
    frame_size=(12, 16),
    options={
        "core_spatial_patch_size": 5, "core_spatial_patch_stride": 3, "core_temporal_patch_size": 5,
        "core_spatial_depth": 1, "core_temporal_depth": 1, "core_num_heads": 2, "core_head_dim": 8,
        "core_emb_dim": 12, "core_mlp_dim": 10,
    },
)  # fmt: skip


def allocate(megabytes: int, sooner: int = 0) -> Work:
    """Work that fills memory; `sooner` megabytes are filled, and given back, before it is called."""
    torch.ones(sooner * 250_000).sum()
    return lambda: torch.ones(megabytes * 250_000).sum()


def fail() -> Work:
    raise ValueError("no such work")


def test_variants_take_turns_after_the_warm_up() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.02)

    samples = seconds({"slow": slow, "fast": lambda: calls.append("fast")}, repeats=2, warmup=1)
    assert calls == ["slow", "fast", "fast", "slow", "slow", "fast"]
    assert [len(x) for x in samples.values()] == [2, 2]
    assert min(samples["slow"]) >= 0.02


def test_threads_are_set_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_is_what_the_work_adds() -> None:
    assert 60e6 < peak_bytes(allocate, 64) < 100e6
    assert 60e6 < peak_bytes(allocate, 64, 300) < 100e6


def test_a_failure_in_the_fresh_process_is_raised_here() -> None:
    with pytest.raises(ValueError, match="no such work"):
        peak_bytes(fail)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(12.9, "s", "12.9 s"), (4.05e9, "B", "4.05 GB"), (52e-9, "s", "0.052 µs"), (587.2, "1/s", "587.2 /s")],
)
def test_figures_say_numbers_that_people_read(value: float, unit: str, text: str) -> None:
    assert number(value, unit) == text


def test_report_writes_one_csv_json_and_figure_per_benchmark(tmp_path: Path) -> None:
    report = Report()
    report.add("step", "tiny", "seconds", "s", {"viv1t": [1.0, 2.0, 4.0], "published": [3.0]})
    report.add("loader", "tiny", "bytes_per_second", "B/s", {"peer:numpy": 5.0})
    report.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{b}.{e}" for b in ("loader", "step") for e in ("csv", "json", "png")
    ]
    with open(tmp_path / "step.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "benchmark": "step", "case": "tiny", "variant": "viv1t", "metric": "seconds", "unit": "s",
        "median": "2.0", "p20": "1.4", "p80": "3.2",
    }  # fmt: skip
    assert len(rows) == 2
    facts = json.loads((tmp_path / "step.json").read_text())
    assert set(facts) == {"machine", "versions", "commit", "uncommitted_changes", "date", "published"}
    assert facts["published"] == {"name": "benchmarks/baseline"}
    assert json.loads((tmp_path / "loader.json").read_text())["published"] is None
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["machine"]["cores"] >= 1
    assert len(report.table().splitlines()) == 4


def test_machine_name_is_a_plain_folder_name() -> None:
    assert machine_name().replace("-", "").isalnum()


def test_session_prints_a_table_and_writes(tmp_path: Path) -> None:
    """A subject of its own, run as a user runs the benchmarks."""
    subject = tmp_path / "test_toy.py"
    subject.write_text("def test_toy(report):\n    report.add('toy', 'c', 'seconds', 's', {'viv1t': [1.5]})\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "benchmarks.conftest", "-p", "no:cacheprovider", str(subject),
         "--rootdir", str(tmp_path), "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "toy        c     viv1t    seconds  s     1.5" in done.stdout
    assert (tmp_path / "out" / "toy.csv").is_file()


def test_step_variants_do_the_same_work() -> None:
    losses = {}
    for name, make in STEPS.items():
        step = make(TINY_STEP)
        step.model.eval()  # no dropout, no readout noise
        losses[name] = [step() for _ in range(3)]
    assert losses["viv1t"] == pytest.approx(losses["published"], rel=1e-4)
    assert len(set(losses["viv1t"])) == 3


def test_inference_variants_predict_the_same() -> None:
    found = {name: make(TINY_STEP)() for name, make in (("viv1t", EngineInference), ("published", PublishedInference))}
    torch.testing.assert_close(found["viv1t"], found["published"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("subject", "cases"), [(STEP, 3), (INFERENCE, 2)], ids=lambda x: getattr(x, "name", x))
def test_subjects_are_measured_at_a_tiny_size(subject: Subject, cases: int) -> None:
    report = Report()
    subject.add_seconds(report, TINY_STEP, Baseline(), repeats=2)
    rows = [(row.case, row.variant) for row in report.rows]
    assert rows[:2] == [("float32-12-frames-7-neurons", "viv1t"), ("float32-12-frames-7-neurons", "published")]
    assert len(set(rows)) == len(rows) == 2 * cases
    assert len({row.median for row in report.rows}) == cases + 1  # one published way, float32, beside all
    assert peak_bytes(subject.plain, TINY_STEP) > 0


def test_a_published_way_that_does_not_work_costs_nothing_of_ours() -> None:
    class Refusing(Baseline):
        def work(self, *_: object) -> Work:
            raise ValueError("it cannot be loaded")

        peak_bytes = work  # type: ignore[assignment]

    made: list[Size] = []
    subject = Subject("toy", made.append, made.append, gradients=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="it cannot be loaded"):
        subject.add_seconds(Report(), TINY_STEP, Refusing(), repeats=1)
    with pytest.raises(ValueError, match="it cannot be loaded"):
        subject.add_peak_bytes(Report(), TINY_STEP, Refusing())
    assert made == []


# What each process that measures does: it says who it is, and computes for ever.
FOREVER = """
import os, pathlib, sys
sys.path.insert(0, {root!r})
def compute():
    pathlib.Path({pid!r}).write_text(str(os.getpid()))
    while True:
        pass
"""
POOL = """
from benchmarks.harness import peak_bytes
import forever
if __name__ == "__main__":
    peak_bytes(forever.compute)
"""
REFERENCE = """
import json, subprocess, sys
process = subprocess.Popen([sys.executable, {program!r}], stdin=subprocess.PIPE, start_new_session=True)
task = dict(adapter={adapter!r}, files=".", ours=".", mouse_id="F", training=None, threads=1, device="cpu", tf32=False)
process.stdin.write(json.dumps(task).encode() + b"\\n")
process.stdin.flush()
process.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such signal")
@pytest.mark.parametrize("kind", ["pool", "reference"])
def test_processes_that_measure_end_with_their_parent(kind: str, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    (tmp_path / "forever.py").write_text(FOREVER.format(root=str(ROOT), pid=str(pid)))
    (tmp_path / "reference.py").write_text("import forever\nload_model = lambda run: forever.compute()\n")
    program = str(ROOT / "benchmarks" / "reference_process.py")
    script = REFERENCE.format(program=program, adapter=str(tmp_path / "reference.py")) if kind == "reference" else POOL
    (tmp_path / "main.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}")
    parent = subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: pid.is_file() and pid.read_text() != "")
        child = int(pid.read_text())
        parent.kill()
        parent.wait()
        wait_until(lambda: ended(child))
    finally:
        parent.kill()
        parent.wait()


def ended(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()  # whoever inherited it has yet to notice
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_on_a_gpu_the_published_way_has_several_forms() -> None:
    forms = {name: case.form for name, case in STEP.cases(Baseline(), "cuda").items()}
    assert set(forms.values()) == {
        "published",
        "published precision=tf32",
        "published precision=bf16 core_compile=True",
    }
    assert {"tf32", "bf16"} < set(INFERENCE.cases(Baseline(), "cuda")) < set(forms)
    released = set(STEP.cases(Checkout, "cuda"))  # which cannot do all of it
    assert released == {name for name, form in forms.items() if "compile" not in form}


def test_bf16_variants_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "multiplies_bf16", lambda _: True)
    size = replace(TINY_STEP, options={**TINY_STEP.options, "precision": "bf16"})
    found = [make(size)() for make in (EngineInference, PublishedInference)]
    exact = EngineInference(TINY_STEP)()
    assert not torch.equal(found[1], exact)
    for each in found:
        torch.testing.assert_close(each, exact, rtol=0.05, atol=0.05)


def test_tensor_cores_are_for_sizes_that_ask() -> None:
    before = torch.get_float32_matmul_precision()
    for device, options, expected in (("cuda", {"precision": "tf32"}, "high"), ("cuda", {}, "highest"),
                                      ("cpu", {"precision": "tf32"}, "highest")):  # fmt: skip
        with replace(TINY_STEP, device=device, options=options).products():
            assert torch.get_float32_matmul_precision() == expected
        assert torch.get_float32_matmul_precision() == before
