"""One mouse in the experanto folder format, as trials on the 30 Hz grid; nothing is written into its folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from viv1t.data.formats.experanto import trials as grid
from viv1t.data.formats.experanto.folder import EYE, RESPONSES, TREADMILL, Experiment, read_experiment
from viv1t.data.formats.experanto.trials import Clip
from viv1t.data.rules import Rules
from viv1t.data.session import Place, Session
from viv1t.errors import DataError
from viv1t.types import Mouse

logger = logging.getLogger("viv1t")


class ExperantoSession(Session):
    """An experanto folder. Trials are numbered in the order in which they were shown.

    Args:
        experiment: the recording.
        mouse: its identity and neurons.
        found: its trials.
        rules: how they were made.
        notices: what a user should know of them.
    """

    ADVICE = "copy the file anew, or leave the mouse out with --mouse_ids"
    NAMING = "say which of its tiers that is with --tier_names"

    def __init__(
        self, experiment: Experiment, mouse: Mouse, found: Sequence[Clip], rules: Rules, notices: Iterable[str] = ()
    ) -> None:
        tiers = {number: "validation" if clip.tier == "oracle" else clip.tier for number, clip in enumerate(found)}
        super().__init__(experiment.path, mouse, tiers)
        self.experiment, self.clips, self.rules = experiment, tuple(found), rules
        place = str(experiment.path)
        self.notices = tuple(text.replace(f"{place}/", "").removeprefix(f"{place}: ") for text in notices)

    @classmethod
    def open_folder(cls, path: Path, mouse_id: str, session: str, rules: Rules) -> ExperantoSession:
        """Opens an experiment's folder.

        Args:
            path: of the folder.
            mouse_id: name of the mouse.
            session: name of the recording.
            rules: how it becomes trials.

        Raises:
            DataError: something is missing, damaged, not understood, or refused by the rules.
        """
        try:
            experiment = read_experiment(path)
            found, notices = grid.clips(experiment, rules)
            grid.check_channels(experiment, rules)
            grid.check_sizes(experiment, rules)
        except DataError as error:
            raise DataError(f"mouse {mouse_id}: {error}") from error
        neurons = experiment.responses.signals
        unknown = np.full((neurons, 3), np.nan, np.float32)
        coordinates = unknown if experiment.coordinates is None else experiment.coordinates
        mouse = Mouse(mouse_id, session, coordinates, experiment.unit_ids)
        opened = cls(experiment, mouse, found, rules, (*experiment.notices, *notices))
        if opened.notices:
            logger.warning("mouse %s: %s", mouse_id, "; ".join(opened.notices))
        return opened

    @property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of the movies in pixels, as they are given."""
        return self.rules.size

    @property
    def neurons_file(self) -> Path:
        """The file that numbers the neurons."""
        return self.path / RESPONSES / "meta" / "unit_ids.npy"

    @property
    def computed(self) -> bool:
        """Trials are cut out of signals."""
        return True

    @property
    def reading(self) -> str:
        """What the trials depend on beside the files."""
        return self.rules.text

    @property
    def statistics_file(self) -> Path | None:
        """Nowhere in the recording's folder."""
        return None

    def duration(self, trial: int) -> int:
        """Frames of a trial on the grid."""
        return self._clip(trial).frames

    def file(self, variable: str, trial: int) -> Path:
        """The file that holds a trial's `variable` (video, response, behavior, pupil_center), or most of it."""
        if variable == "video":
            return self.experiment.screen.file(self._clip(trial).keys[0])
        wanted = {"response": (RESPONSES,), "behavior": (EYE, TREADMILL), "pupil_center": (EYE,)}[variable]
        devices = [name for name in wanted if name in self.experiment.devices] or [RESPONSES]
        return self._data_file(devices[0])

    def files(self, trials: Iterable[int]) -> list[Path]:
        """Every file that the trials are made from."""
        screen = self.path / "screen"
        found = [screen / "combined_meta.json", screen / "timestamps.npy", self.path / "meta.json"]
        for name in sorted(self.experiment.devices):
            found += [self.path / name / "meta.yml", self._data_file(name), *sorted((self.path / name).glob("meta/*"))]
        shown = dict.fromkeys(key for trial in trials for key in self._clip(trial).keys)
        described = () if found[0].is_file() else (screen / "meta" / f"{key}.yml" for key in shown)
        return [*found, *described, *(file for key in shown if (file := self.experiment.screen.file(key)).is_file())]

    def place(self, variable: str, trial: int) -> Place:
        """Nowhere: trials are computed."""
        raise NotImplementedError

    def repeats(self, tier: str) -> list[list[int]]:
        """Groups of the tier's trials that show the same stimulus, each ascending, in order of their first trial."""
        groups: dict[object, list[int]] = {}
        for trial in self.trials(tier):
            clip = self._clip(trial)
            groups.setdefault((clip.condition or self._stimulus(clip), clip.frames), []).append(trial)
        return list(groups.values())

    def _stimulus(self, clip: Clip) -> str:
        """What tells the stimulus of a clip without a condition from others: its frames."""
        movie = grid.video(self.experiment, clip, self.rules)
        return hashlib.blake2b(np.ascontiguousarray(movie, np.float32).data, digest_size=16).hexdigest()

    def _recorded(self, variable: str, trial: int) -> np.ndarray:
        clip = self._clip(trial)
        try:
            if variable == "response":
                return grid.responses(self.experiment, clip, self.rules)[0]
            make = {"video": grid.video, "behavior": grid.behavior, "pupil_center": grid.pupil_center}[variable]
            return make(self.experiment, clip, self.rules)
        except DataError as error:
            raise DataError(f"mouse {self.mouse.id}, trial {trial}: {error}") from error

    def _clip(self, trial: int) -> Clip:
        if not 0 <= trial < len(self.clips):
            raise DataError(f"mouse {self.mouse.id}: {self.path}: trial {trial} is not in the recording")
        return self.clips[trial]

    @cached_property
    def _data_files(self) -> dict[str, Path]:
        kinds = ("data.mem", "data.npy")
        return {
            name: next((f for kind in kinds if (f := self.path / name / kind).is_file()), self.path / name / kinds[0])
            for name in self.experiment.devices
        }

    def _data_file(self, device: str) -> Path:
        return self._data_files[device]
