"""The order of training, as pure functions: the same whatever the threads, resumable anywhere.

Everything drawn is a hash of what it is drawn for, so no generator's state has to be kept, and no library's stream can
change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


def _draw(*key: int | str) -> int:
    """A uniform 64-bit integer that belongs to `key`."""
    text = "\0".join(part if isinstance(part, str) else str(int(part)) for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def training_order(
    seed: int, epoch: int, trial_ids_per_mouse: Mapping[str, Sequence[int]], batch_size: int
) -> list[tuple[str, tuple[int, ...]]]:
    """The batches of an epoch: one of each mouse in turn, for as many rounds as the largest mouse has batches.

    A mouse with fewer batches starts over, shuffled anew. Its last batch may be smaller than the others.

    Args:
        seed: of the run.
        epoch: counts from wherever the caller likes.
        trial_ids_per_mouse: distinct trial numbers, at least one of each mouse; their order does not matter.
        batch_size: trials in a batch.

    Returns:
        Mouse and trial numbers of every batch.
    """
    lengths = {mouse: -(-len(trials) // batch_size) for mouse, trials in trial_ids_per_mouse.items()}
    batches: dict[str, list[tuple[int, ...]]] = {}
    order = []
    for turn in range(max(lengths.values(), default=0)):
        for mouse, trials in trial_ids_per_mouse.items():
            visit, batch = divmod(turn, lengths[mouse])
            if batch == 0:
                shuffled = sorted(trials, key=lambda trial: _draw("order", seed, epoch, mouse, visit, trial))
                batches[mouse] = [
                    tuple(shuffled[start : start + batch_size]) for start in range(0, len(shuffled), batch_size)
                ]
            order.append((mouse, batches[mouse][batch]))
    return order


def crop_start(seed: int, epoch: int, mouse_id: str, trial_id: int, valid_starts: int, visit: int = 0) -> int:
    """The first frame of a training crop, uniform over 0 to `valid_starts` - 1.

    Args:
        seed: of the run.
        epoch: as for `training_order`.
        mouse_id: whose trial it is.
        trial_id: number of the trial.
        valid_starts: how many starts leave room for the crop, at least 1.
        visit: how many times this epoch has shown the trial before.
    """
    return (_draw("crop", seed, epoch, mouse_id, visit, trial_id) * valid_starts) >> 64
