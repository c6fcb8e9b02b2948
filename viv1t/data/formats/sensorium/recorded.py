"""What a run knows of its recordings when they are not there: `recordings.safetensors`.

A run writes it when it starts. It tells whose responses the model predicts, and holds what is needed to use the model
on other movies. For every mouse, in the run's order:

    <mouse>/unit_ids                        (N,) int64, the recording's own neuron numbers
    <mouse>/coordinates                     (N, 3) float32, micrometres
    <mouse>/<family>/<variable>/<name>      statistics as training used them, see `viv1t.data.statistics`: both families
                                            of video, behavior and pupil_center, or the one that the run's transform
                                            reads and `time`; of responses (recorded units) `time`, and `std` of
                                            `trial`; none with `--transform_mode 0`
    <mouse>/{counts,trial_ids}              what they were computed from
    <mouse>/median/{behavior,pupil_center}  (2,) float32, over the tier `train`, as recorded
    <mouse>/levels                          (2,) float32, smallest and largest value of the movies; of runs without
                                            statistics, those of the first one

The header holds one entry, JSON: `facts` and their `digest`. Facts are `mice` (id and session of each), `frame_size`
([H, W] pixels), `frame_rate` (Hz), `transform` (`mode`, `statistics`, `center_crop`, `response_scale`, as an exported
model has them; null where the file belongs to no run) and `tensors` (a checksum of each). So the neurons of a hundred
mice are read, and proved, without the statistics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from viv1t.config.data import DataConfig
from viv1t.data.statistics import NAMES, MouseStatistics, statistics_from_tensors, statistics_tensors
from viv1t.data.transform import Transform, family_of
from viv1t.errors import CheckpointError, ConfigError, DataError
from viv1t.system.files import replacing
from viv1t.types import FRAME_RATE, Mouse

FORMAT = "viv1t-recordings-1"
STATES = ("behavior", "pupil_center")
_INPUTS = ("video", *STATES)
# What damaged files raise.
_UNREADABLE = (safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError)


@dataclass(frozen=True)
class RecordedMouse:
    """What a run keeps of one mouse.

    Attributes:
        mouse: its identity and neurons.
        statistics: None where the run used none. What is not kept is NaN.
        medians: (2,) float32 of `behavior` and `pupil_center` over the tier `train`, as recorded.
        levels: smallest and largest value of the movies, which tell 0 to 255 from 0 to 1; None where not known.
    """

    mouse: Mouse
    statistics: MouseStatistics | None
    medians: Mapping[str, np.ndarray] = field(default_factory=dict)
    levels: tuple[float, float] | None = None

    def tensors(self, mode: str | None = None) -> dict[str, np.ndarray]:
        """The arrays that are kept, by name: for a run with the transform `mode`, or for any."""
        tensors = {"unit_ids": self.mouse.unit_ids.astype(np.int64), "coordinates": self.mouse.coordinates}
        tensors |= {f"median/{name}": values for name, values in self.medians.items()}
        if self.levels is not None:
            tensors["levels"] = np.array(self.levels, np.float32)
        if self.statistics is not None:
            # Statistics of each frame are most of the file: of responses only the deviation is used again.
            left_out = {f"trial/response/{name}" for name in NAMES if name != "std"}
            if mode is not None and family_of(mode) == "time":
                left_out |= {f"trial/{variable}/{name}" for variable in _INPUTS for name in NAMES}
            tensors |= {k: v for k, v in statistics_tensors(self.statistics).items() if k not in left_out}
        return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def write_recorded(
    path: Path, mice: Mapping[str, RecordedMouse], frame_size: tuple[int, int], config: DataConfig | None
) -> None:
    """Writes the file, atomically.

    Args:
        path: of the file.
        mice: by id, in the run's order.
        frame_size: (H, W) of the movies in pixels.
        config: of the run; None keeps what any transform may need.

    Raises:
        CheckpointError: it cannot be written.
    """
    mode = None if config is None else config.transform
    tensors = {f"{id}/{name}": a for id, known in mice.items() for name, a in known.tensors(mode).items()}
    transform = None if config is None else {
        "mode": config.transform, "statistics": config.statistics, "center_crop": config.center_crop,
        "response_scale": config.response_scale,
    }  # fmt: skip
    facts = {
        "mice": {id: known.mouse.session for id, known in mice.items()},
        "frame_size": list(frame_size),
        "frame_rate": FRAME_RATE,
        "transform": transform,
        "tensors": {name: _checksum(array) for name, array in tensors.items()},
    }
    header = json.dumps({"digest": _digest(facts), "facts": facts})
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(safetensors.numpy.save(tensors, {FORMAT: header}))
    except (safetensors.SafetensorError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{path}: cannot be written ({reason})") from error


class Recorded:
    """The content of a `recordings.safetensors`; statistics are read when they are asked for.

    Args:
        path: of the file.

    Attributes:
        mice: identity and neurons by id, in the run's order.
        frame_size: (H, W) of the movies in pixels.
        frame_rate: of movies and responses, in Hz.
        transform_facts: `mode`, `statistics`, `center_crop` and `response_scale` of the run; None of no run.

    Raises:
        CheckpointError: the file is missing, damaged or of another format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._opened() as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise CheckpointError(f"{path}: not what a run keeps of its recordings ({FORMAT} expected)")
            header = json.loads(metadata[FORMAT])
            facts = header["facts"]
            if header["digest"] != _digest(facts):
                raise ValueError("its checksum does not fit its content")
            self._checksums: dict[str, str] = facts["tensors"]
            height, width = facts["frame_size"]
            self.frame_size: tuple[int, int] = int(height), int(width)
            self.frame_rate = float(facts["frame_rate"])
            self.transform_facts: dict[str, Any] | None = facts["transform"]
            self.mice = {
                id: Mouse(id, session, self._tensor(file, f"{id}/coordinates"), self._tensor(file, f"{id}/unit_ids"))
                for id, session in facts["mice"].items()
            }

    def changed(self, now: RecordedMouse, mode: str) -> list[str]:
        """What a recording differs in from what is kept of it, as `unit_ids` or `trial/video/mean`.

        Numbers that were summed may differ by rounding, from machine to machine.

        Raises:
            CheckpointError: the file is damaged.
        """
        found, prefix = now.tensors(mode), f"{now.mouse.id}/"
        kept = {name.removeprefix(prefix) for name in self._checksums if name.startswith(prefix)}
        different = sorted(kept ^ found.keys())
        with self._opened() as file:
            for name in sorted(kept & found.keys()):
                array = self._tensor(file, prefix + name)
                close = array.shape == found[name].shape and np.allclose(array, found[name], 1e-4, 1e-6, equal_nan=True)
                if not (close if array.dtype.kind == "f" else np.array_equal(array, found[name])):
                    different.append(name)
        return different

    def statistics(self, mouse_id: str) -> MouseStatistics | None:
        """A mouse's statistics; None where the run used none. What is not kept is NaN.

        Raises:
            CheckpointError: the file is damaged.
        """
        prefix = f"{mouse_id}/"
        names = [n.removeprefix(prefix) for n in self._checksums if n.startswith(prefix)]
        kept = [n for n in names if n.split("/")[0] in ("trial", "time", "counts", "trial_ids")]
        if not kept:
            return None
        with self._opened() as file:
            tensors = {name: self._tensor(file, prefix + name) for name in kept}
            frames = tensors["trial/response/std"].shape[-1]
            rows = {"video": self.frame_size, "response": (self.mice[mouse_id].neurons,)}
            for variable in ("response", *_INPUTS):
                for name in NAMES:
                    shape = (*rows.get(variable, (2,)), frames)
                    tensors.setdefault(f"trial/{variable}/{name}", np.broadcast_to(np.float32(np.nan), shape))
            return statistics_from_tensors(tensors)

    def median(self, mouse_id: str, variable: str) -> np.ndarray:
        """(2,) float32, the median of `behavior` or `pupil_center` over the tier `train`, as recorded.

        Raises:
            CheckpointError: the file is damaged.
        """
        with self._opened() as file:
            return self._tensor(file, f"{mouse_id}/median/{variable}")

    def levels(self, mouse_id: str) -> tuple[float, float] | None:
        """The smallest and the largest value of a mouse's movies; None where they are not known.

        Raises:
            CheckpointError: the file is damaged.
        """
        if f"{mouse_id}/levels" not in self._checksums:
            return None
        with self._opened() as file:
            low, high = self._tensor(file, f"{mouse_id}/levels").tolist()
            return low, high

    def transform(self, mouse_id: str, config: DataConfig) -> Transform:
        """What the run did to the mouse's trials, or, for a file of no run, what `config` says it did.

        Raises:
            ConfigError: the statistics were not made for the run's transform.
            CheckpointError: the file is damaged.
        """
        if self.transform_facts is not None and self.transform_facts["mode"] != config.transform:
            raise ConfigError(f"{self.path}: belongs to a run with another --transform_mode: give that of this run")
        statistics = None if config.transform == "none" else self.statistics(mouse_id)
        if statistics is None and config.transform != "none":
            raise ConfigError(f"{self.path}: holds no statistics of mouse {mouse_id}, which the run's transform needs")
        return Transform(
            mouse_id, config.transform, statistics, config.center_crop, self.frame_size, config.response_scale,
            config.missing,
        )

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        if not self.path.is_file():
            raise CheckpointError(f"{self.path}: no such file")
        try:
            with safetensors.safe_open(self.path, framework="np") as file:
                yield file
        except (CheckpointError, ConfigError, DataError):
            raise
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(f"{self.path}: damaged ({reason}); restore it from a copy") from error

    def _tensor(self, file: Any, name: str) -> np.ndarray:
        array: np.ndarray = file.get_tensor(name)
        if _checksum(array) != self._checksums[name]:
            raise ValueError(f"the checksum of {name} does not fit it")
        return array


def other_neurons(known: np.ndarray, found: np.ndarray) -> str:
    """How two lists of neuron numbers differ, in words; empty where they are the same in the same order."""
    if np.array_equal(known, found):
        return ""
    if len(known) != len(found):
        return f"{len(found)} neurons in place of {len(known)}"
    if np.array_equal(np.sort(known), np.sort(found)):
        place = int((known != found).argmax())
        return f"the same neurons in another order: number {place} is {found[place]} in place of {known[place]}"
    return f"{len(np.setdiff1d(found, known))} of {len(found)} neurons are others"


def _checksum(array: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
