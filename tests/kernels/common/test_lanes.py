"""Lanes: everything is done once, in any number of threads; errors come out."""

from __future__ import annotations

import threading

import pytest
import torch
from viv1t.kernels.common.lanes import MOST_LANES, lane_slices, run_lanes


@pytest.mark.parametrize("items", [0, 1, 5, 31, 32, 1000])
@pytest.mark.parametrize("step", [1, 3])
def test_lanes_cover_every_item_once_in_order(items: int, step: int) -> None:
    lanes = lane_slices(items, step)
    assert [i for lane in lanes for part in lane for i in range(items)[part]] == list(range(items))
    assert len(lanes) <= MOST_LANES
    sizes = [len(lane) for lane in lanes]
    assert not sizes or max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_each_lane_runs_once_on_one_torch_thread_without_autograd(threads: int) -> None:
    done, lock = [], threading.Lock()

    def work(lane: int) -> None:
        with lock:
            done.append((lane, torch.get_num_threads(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            run_lanes(work, 9)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert sorted(done) == [(lane, 1, False, False) for lane in range(9)]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_comes_out(threads: int) -> None:
    def work(lane: int) -> None:
        if lane == 4:
            raise ValueError("lane 4")

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.raises(ValueError, match="lane 4"):
            run_lanes(work, 9)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_lanes_write_to_what_inference_mode_made(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            out = torch.zeros(6)
            run_lanes(lambda lane: out[lane].add_(lane), 6)
    finally:
        torch.set_num_threads(before)
    assert out.tolist() == [0, 1, 2, 3, 4, 5]
