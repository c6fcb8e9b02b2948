"""`pytest benchmarks [-k SUBJECT] [--out DIR]`: measures, prints a table, writes one CSV and JSON per subject."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness import ROOT, Report, machine_name

_REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--out", type=Path, metavar="DIR", help="where results go (benchmarks/results/<machine>)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Takes the measurements."""
    return pytestconfig.stash[_REPORT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[_REPORT]
    if not found.rows:
        return
    folder = config.getoption("--out") or ROOT / "benchmarks" / "results" / machine_name()
    found.write(folder)
    terminalreporter.section("measurements")
    terminalreporter.write_line(found.table())
    terminalreporter.write_line(f"written to {folder}")
