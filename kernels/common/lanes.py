"""Work on a CPU in lanes: independent parts, each on one thread, with the same result for any number of threads.

Threads that each run whole products of their own, on data in their own cache, waste less than threads that share every
product, and much less beside other work on the machine. What lanes add up is added in the order of the lanes, whichever
thread ran them; a lane's own products see one thread and so do not depend on how many there are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

# As many as may run at a time; each holds its own sums.
MOST_LANES = 16


def lane_slices(items: int, step: int) -> list[list[slice]]:
    """Cuts `items` into groups of `step`, and the groups, in order, into at most MOST_LANES lanes of about one size."""
    groups = [slice(start, min(start + step, items)) for start in range(0, items, step)]
    lanes = min(len(groups), MOST_LANES)
    return [groups[i * len(groups) // lanes : (i + 1) * len(groups) // lanes] for i in range(lanes)]


def run_lanes(work: Callable[[int], None], lanes: int) -> None:
    """Calls work(0) .. work(lanes - 1), without autograd or autocast, on as many threads as PyTorch may use.

    Raises:
        BaseException: the first that a lane raised, after all threads have ended.
    """
    threads = torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()  # of the caller: what it made can be written in no other mode
    waiting = iter(range(lanes))
    lock = threading.Lock()
    raised: list[BaseException] = []

    def run() -> None:
        torch.set_num_threads(1)  # of this thread alone
        try:
            with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", enabled=False):
                while not raised:
                    with lock:
                        lane = next(waiting, None)
                    if lane is None:
                        return
                    work(lane)
        except BaseException as error:
            raised.append(error)

    helpers = [threading.Thread(target=run) for _ in range(min(threads, lanes) - 1)]
    for helper in helpers:
        helper.start()
    try:
        run()
    finally:
        for helper in helpers:
            helper.join()
        torch.set_num_threads(threads)
    if raised:
        raise raised[0]
