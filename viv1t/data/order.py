"""The order of training, as pure functions: the same whatever the threads, resumable anywhere.

Everything drawn is a hash of what it is drawn for, so no generator's state has to be kept, and no library's stream can
change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from viv1t.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Cursor:
    """A position in training: what to save, and to continue from. Its fields are plain values.

    Attributes:
        epoch: the epoch under way.
        batch: how many of its batches, over all mice and ranks, have been used.
        order: digest of what the order is made of; a cursor of another order is refused.
    """

    epoch: int
    batch: int
    order: str

    def check(self, order: str, batches: int) -> None:
        """Raises CheckpointError unless it is a position in an epoch of `batches` batches of this `order`."""
        if self.order != order:
            raise CheckpointError(
                f"the position (epoch {self.epoch}, batch {self.batch}) was saved with other trials, mice, seed, "
                "--batch_size or --crop_frame; continue with the same data and options, or start the epoch anew"
            )
        if not 0 <= self.batch <= batches:
            raise CheckpointError(f"there is no batch {self.batch} in an epoch of {batches} batches")


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


def order_digest(seed: int, trial_ids_per_mouse: Mapping[str, Sequence[int]], batch_size: int, crop_frame: int) -> str:
    """A short text that differs whenever batches may."""
    mice = [(mouse, sorted(map(int, trials))) for mouse, trials in trial_ids_per_mouse.items()]
    return hashlib.blake2b(repr((seed, batch_size, crop_frame, mice)).encode(), digest_size=8).hexdigest()


def share(neurons: Mapping[str, int], rank: int, ranks: int) -> tuple[str, ...]:
    """The mice that belong to one of several processes.

    A mouse is not divided: its loss correlates over all trials of a batch, and its readout then lives in one place.
    Every mouse has a batch in each round and the core costs the same for all, so processes get equal numbers of mice,
    to within one, and mice with many neurons go where there are the fewest.

    Args:
        neurons: of every mouse, in the run's order.
        rank: of this process, from 0.
        ranks: number of processes.

    Returns:
        The mice of this process, in the run's order.

    Raises:
        ConfigError: there are more processes than mice.
    """
    if ranks > len(neurons):
        raise ConfigError(
            f"{ranks} processes cannot share {len(neurons)} mice, of which each belongs to one: start at most "
            f"{len(neurons)}"
        )
    served: list[list[str]] = [[] for _ in range(ranks)]
    for mouse in sorted(neurons, key=lambda mouse: -neurons[mouse]):
        min(served, key=lambda mice: (len(mice), sum(neurons[m] for m in mice))).append(mouse)
    return tuple(mouse for mouse in neurons if mouse in served[rank])
