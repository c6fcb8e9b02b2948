"""`pytest benchmarks [-k SUBJECT] [--out DIR] [--reference PATH]`: measures, prints a table, writes results.

A CSV, a JSON and a figure per subject.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import ROOT, Report, machine_name
from benchmarks.published import Baseline, Checkout, Published

_REPORT = pytest.StashKey[Report]()
_PUBLISHED = pytest.StashKey[Published]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--out", type=Path, metavar="DIR", help="where results go (benchmarks/results/<machine>)")
    parser.addoption(
        "--reference",
        type=Path,
        metavar="PATH",
        help="a checkout of the published code with a file reference.py in it, measured instead of our plain version",
    )


def pytest_configure(config: pytest.Config) -> None:
    checkout = config.getoption("--reference")
    config.stash[_REPORT] = Report()
    config.stash[_PUBLISHED] = Checkout(checkout) if checkout else Baseline()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Takes the measurements."""
    return pytestconfig.stash[_REPORT]


@pytest.fixture
def published(request: pytest.FixtureRequest, report: Report) -> Iterator[Published]:
    """Makes and measures the variant `published`; its processes end with the test."""
    found = request.config.stash[_PUBLISHED]
    report.published[request.path.stem.removeprefix("test_")] = found.facts
    yield found
    found.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[_REPORT]
    if not found.rows and not found.texts:
        return
    folder = config.getoption("--out") or ROOT / "benchmarks" / "results" / machine_name()
    found.write(folder)
    terminalreporter.section("measurements")
    terminalreporter.write_line(found.table())
    for benchmark, source in found.sources().items() if config.getoption("--reference") else ():
        at = f" at {source['commit']}" if source.get("commit") else ""
        terminalreporter.write_line(f"published in {benchmark}: {source['name']}{at}")
    terminalreporter.write_line(f"written to {folder}")
