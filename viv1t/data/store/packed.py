"""The trial store: a packed session, which is read like one as recorded, with one read per crop.

    <folder>/<session>/{videos,responses,behavior,pupil_center}.npy   see `viv1t.data.store.stack`
    <folder>/<session>/videos/<trial>.mp4  in place of videos.npy where movies are packed as video, without loss
    <folder>/<session>/store.json          what they hold, and a checksum of every trial in every array
    <folder>/<session>/meta.safetensors    coordinates, unit_ids, and statistics of the recording
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from viv1t.data.session import FOLDERS, VARIABLES, Place, Session
from viv1t.data.statistics import MouseStatistics, statistics_from_tensors
from viv1t.data.store.stack import FILES, Layout
from viv1t.data.survey import STORE_FILE, session_name
from viv1t.errors import DataError
from viv1t.system.files import open_file
from viv1t.types import Mouse

VERSION = 1
META_FILE = "meta.safetensors"


def checksum(data: bytes | memoryview) -> str:
    """What `store.json` knows a run of bytes by."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def video_file(store: Path, trial: int) -> Path:
    """Where a trial's movie lies that is packed as video."""
    return store / FOLDERS["video"] / f"{trial}.mp4"


@dataclass(frozen=True)
class StoreDocument:
    """The content of `store.json`.

    Attributes:
        session: name that the recording had when it was packed.
        source: what was packed: its folder and a fingerprint of its files.
        neurons: N.
        unit_ids: N numbers.
        tiers: of every trial number of the recording, in order.
        trials: numbers of the trials packed, in the arrays' order.
        durations: recorded frames of each.
        arrays: per file its `shape`, `dtype`, and `checksums` of each trial's bytes; of movies packed as video those
            of what they decode to, and in `files` those of the files themselves.
        meta: checksum of `meta.safetensors`.
        hidden: per tier, whether its responses are withheld.
        repeats: per tier, groups of trials that show the same movie.
        response_error: where responses are float16, the `largest` and `mean` relative error of those above zero.
        version: of this format.
    """

    session: str
    source: dict[str, str]
    neurons: int
    unit_ids: list[int]
    tiers: list[str]
    trials: list[int]
    durations: list[int]
    arrays: dict[str, dict[str, Any]]
    meta: str
    hidden: dict[str, bool]
    repeats: dict[str, list[list[int]]]
    response_error: dict[str, float] | None = None
    version: int = VERSION

    @property
    def has_videos(self) -> bool:
        """Whether movies are packed as video."""
        return "files" in self.arrays[FILES["video"]]

    def to_text(self) -> str:
        """JSON, a line for each entry, with a checksum of its own as the last."""
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in vars(self).items()]
        return "{\n" + ",\n".join([*lines, f'  "checksum": "{self.own_checksum}"']) + "\n}\n"

    @property
    def own_checksum(self) -> str:
        return checksum(json.dumps(vars(self), sort_keys=True).encode())

    @classmethod
    def read(cls, folder: Path) -> tuple[StoreDocument, str]:
        """The document of a packed session, and the checksum that it was written with.

        Raises:
            DataError: it is missing, damaged, or of another version.
        """
        path = folder / STORE_FILE
        try:
            with open_file(path) as file:
                entries = json.loads(file.read())
            if entries.get("version") != VERSION:
                raise DataError(
                    f"{path}: a store of version {entries.get('version')}, but this release reads version {VERSION}; "
                    "pack the recording again"
                )
            written = entries.pop("checksum")
            document = cls(**entries)
            document.layout()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: damaged ({error}); pack the recording again") from error
        return document, written

    def layout(self) -> Layout:
        """Shapes and types of the arrays.

        Raises:
            ValueError: they do not fit each other.
        """
        arrays = {variable: self.arrays[file] for variable, file in FILES.items()}
        shapes = {variable: tuple(array["shape"]) for variable, array in arrays.items()}
        if any(min(shape) < 1 for shape in shapes.values()) or len({shape[:2] for shape in shapes.values()}) > 1:
            raise ValueError(f"arrays of shapes {', '.join(map(str, shapes.values()))}")
        trials, frames = shapes["video"][:2]
        layout = Layout(
            trials,
            frames,
            {variable: shape[2:] for variable, shape in shapes.items()},
            {variable: np.dtype(array["dtype"]).newbyteorder("<") for variable, array in arrays.items()},
        )
        ranks = [len(layout.rows[variable]) for variable in VARIABLES]
        counts = {trials, len(self.trials), len(self.durations), *(len(a["checksums"]) for a in arrays.values())}
        counts.add(len(arrays["video"].get("files", self.trials)))
        neurons = {self.neurons, len(self.unit_ids), layout.rows["response"][0]}
        if ranks != [2, 1, 1, 1] or len(counts) > 1 or len(neurons) > 1 or len(set(self.trials)) < trials:
            raise ValueError("trials, neurons or arrays differ in their numbers")
        if not all(1 <= duration <= frames for duration in self.durations):
            raise ValueError(f"durations outside 1 to {frames}")
        if not set(self.trials) <= set(range(len(self.tiers))):
            raise ValueError("trials without a tier")
        return layout


def read_meta(folder: Path, group: str = "") -> dict[str, np.ndarray]:
    """The arrays of `meta.safetensors`: the neurons', or those of a group, `computed` or `provided`, by shorter names.

    Raises:
        DataError: it is missing or damaged.
    """
    prefix = f"{group}/" if group else ""
    try:
        open_file(folder / META_FILE).close()  # safetensors would wait for a pipe
        with safetensors.safe_open(folder / META_FILE, framework="np") as file:
            names = [n for n in file.keys() if n.startswith(prefix) and (group or "/" not in n)]  # noqa: SIM118
            return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{folder / META_FILE}: damaged ({error}); pack the recording again") from error


class PackedSession(Session):
    """A packed session. Arguments as for `Session`.

    Attributes:
        document: what `store.json` says.
    """

    ADVICE = "`viv1t-data verify` lists all damage; pack the recording again"

    def __init__(self, path: Path, mouse: Mouse, tiers: dict[int, str], document: StoreDocument) -> None:
        super().__init__(path, mouse, tiers)
        self.document = document
        self._layout = document.layout()
        self._index = {trial: index for index, trial in enumerate(document.trials)}
        self._files = {variable: path / name for variable, name in FILES.items()}  # asked for with every read

    @classmethod
    def open_folder(cls, path: Path, mouse_id: str) -> PackedSession:
        """Opens a folder that `viv1t-data pack` has written; raises as `open`."""
        document, _ = StoreDocument.read(path)
        meta = read_meta(path)
        if not {"coordinates", "unit_ids"} <= set(meta) or len(meta["coordinates"]) != document.neurons:
            raise DataError(f"mouse {mouse_id}: {path / META_FILE}: lacks the neurons; pack the recording again")
        mouse = Mouse(mouse_id, session_name(path), meta["coordinates"], meta["unit_ids"])
        return cls(path, mouse, dict(enumerate(document.tiers)), document)

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of the movies in pixels."""
        height, width = self._layout.rows["video"]
        return height, width

    @property
    def neurons_file(self) -> Path:
        """The file that numbers the neurons."""
        return self.path / META_FILE

    def duration(self, trial: int) -> int:
        """Recorded frames of a trial."""
        return self.document.durations[self._row(trial)]

    def file(self, variable: str, trial: int) -> Path:
        """The array that holds `variable` (video, response, behavior, pupil_center) of all trials, or a video."""
        if variable == "video" and self.document.has_videos:
            return video_file(self.path, trial)
        return self._files[variable]

    @property
    def computed(self) -> bool:
        """Whether movies are packed as video."""
        return self.document.has_videos

    def place(self, variable: str, trial: int) -> Place:
        """Stacked with the others, or a video of its own."""
        if variable == "video" and self.document.has_videos:
            return Place(self.file(variable, trial), self.duration(trial))
        return Place(self.file(variable, trial), self._layout.frames, self._row(trial))

    def hidden(self, tier: str) -> bool:
        """Whether the tier's responses are withheld, as found when the session was packed."""
        return self.document.hidden.get(tier, False)

    def repeats(self, tier: str) -> list[list[int]]:
        """Groups of a tier's trials that show the same movie, as found when the session was packed."""
        return [list(group) for group in self.document.repeats.get(tier, ())]

    def stored_statistics(self, source: str) -> MouseStatistics:
        """The statistics `computed` or `provided` of the recording.

        Raises:
            DataError: the recording had none.
        """
        tensors = read_meta(self.path, source)
        if not tensors:
            other = "--stat_mode 1 uses computed ones" if source == "provided" else "it has no trial of the tier train"
            raise DataError(f"mouse {self.mouse.id}: {self.path / META_FILE}: holds no {source} statistics; {other}")
        return statistics_from_tensors(tensors)

    def _row(self, trial: int) -> int:
        if trial not in self._index:
            tier = self.tiers.get(trial)
            what = f"of the tier {tier} is not packed" if tier else "is not in the recording"
            raise DataError(f"mouse {self.mouse.id}: {self.path}: trial {trial} {what}")
        return self._index[trial]
