"""The watch by itself: which signals it answers, and when."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from viv1t.errors import Interrupted
from viv1t.training.watch import Watch


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_with_nothing_to_save_a_signal_ends_at_once_and_a_second_is_harmless(number: int, status: int) -> None:
    with Watch() as watch:
        with pytest.raises(Interrupted) as end:
            send(number)
        assert end.value.exit_code == status
        assert isinstance(end.value, KeyboardInterrupt)
        send(signal.SIGINT)
        assert watch.signal == number


def test_while_saving_is_possible_a_signal_waits_for_the_check() -> None:
    saved: list[int] = []
    with Watch() as watch, watch.saving(lambda: saved.append(1)):
        watch.check()
        send(signal.SIGTERM)
        send(signal.SIGINT)  # only the first counts
        with pytest.raises(Interrupted) as end:
            watch.check()
    assert end.value.exit_code == 143
    assert saved == []  # the second thread had no reason to


def test_a_step_that_takes_too_long_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second thread saves and ends the process; here, it only says so."""
    ended: list[int] = []
    saved: list[int] = []
    monkeypatch.setattr("viv1t.training.watch.os._exit", ended.append)
    monkeypatch.setattr("viv1t.training.watch.GRACE", 0.1)
    with Watch() as watch, watch.saving(lambda: saved.append(len(ended))):
        with watch.changing:  # nothing is saved while the state changes
            send(signal.SIGTERM)
            time.sleep(0.7)
            assert saved == ended == []
        while not ended:
            time.sleep(0.01)
    assert ended[0] == 143
    assert saved[0] == 0  # before the end
    assert capsys.readouterr().err.endswith(": interrupted; saved before the step that was under way\n")


def test_handlers_are_put_back_and_threads_end() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], threading.active_count()
    with Watch():
        assert signal.getsignal(signal.SIGTERM) != before[0][1]
    assert ([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], threading.active_count()) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_another_thread_may_train_without_signals() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with Watch() as watch, watch.saving(lambda: None), watch.limit(60, lambda: Interrupted(2)):  # type: ignore
                watch.check()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


def test_no_limit_ends_nothing() -> None:
    with Watch() as watch, watch.limit(0, lambda: Interrupted(2)) as restart:  # type: ignore
        time.sleep(0.6)
        restart()


# -- once the signal is answered -------------------------------------------------------------------------------------


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which the second thread would have ended the process, after a tenth of a second."""
    statuses: list[int] = []
    monkeypatch.setattr("viv1t.training.watch.os._exit", statuses.append)
    monkeypatch.setattr("viv1t.training.watch.GRACE", 0.1)
    return statuses


def leave_by_signal(watch: Watch) -> None:
    """As training does."""
    with suppress(Interrupted), watch.saving(lambda: None):
        send(signal.SIGTERM)
        watch.check()


def test_what_is_closed_after_the_save_may_take_its_time(ends: list[int]) -> None:
    with Watch() as watch:
        leave_by_signal(watch)
        time.sleep(1.2)  # trackers, say
    assert ends == []


def test_a_save_that_takes_longer_than_a_step_may_is_not_broken_off(ends: list[int]) -> None:
    with Watch() as watch:
        with watch.saving(lambda: None):
            send(signal.SIGTERM)
            with watch.changing:
                watch.answer()
                time.sleep(1.2)
        time.sleep(0.6)
    assert ends == []


def test_nor_is_what_ends_without_a_save(ends: list[int]) -> None:
    with Watch():
        with pytest.raises(Interrupted):
            send(signal.SIGINT)
        time.sleep(1.2)
    assert ends == []


def test_what_never_closes_is_ended(
    ends: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("viv1t.training.watch.CLOSING", 0.2)
    with Watch() as watch:
        leave_by_signal(watch)
        while not ends:
            time.sleep(0.01)
    assert ends[0] == 143
    assert "interrupted, after all was saved" in capsys.readouterr().err
