"""Searches of natural movies for the clips that neurons answer most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from viv1t.errors import ConfigError
from viv1t.lab.experiments import search
from viv1t.lab.films import LAYOUTS, Films, circle_size
from viv1t.lab.natural import Library, library_at, library_of, shortlist
from viv1t.lab.present import Theatre
from viv1t.lab.wanted import SIZE
from viv1t.stimuli.files import write_film


class Searches(Films):
    """Searches of natural movies, beside most exciting films."""

    def search(
        self,
        *,
        library: str | Path | None = None,
        mask: str | float = SIZE,
        listed: int = 200,
        still: bool = False,
        recall: int | None = None,
        windows: str = "short",
        films: str = "npy",
    ) -> pd.DataFrame:
        """The clips of natural movies that neurons answer most when each is shown alone.

        Args:
            library: films, or a folder of recordings; default the training movies of the mouse.
            mask: what is shown of a clip: `full`, or a circle at the field as for `mei`.
            listed: clips a neuron that are shown alone, of those that the whole movies promise most for.
            still: each clip's first frame throughout.
            recall: neurons of which all clips are shown, to tell what the lists miss; default 5 on a GPU, else none.
            windows: `short` or `single`, as for `mei`.
            films: how the best clips are written: `npy`, `mkv` or `avi`.

        Returns:
            See `viv1t.lab.experiments.search.table`.

        Raises:
            ConfigError: an option is wrong, or there are no movies.
        """
        for option, number, least in (("listed", listed, 1), ("recall", recall or 0, 0)):
            if number < least:
                raise ConfigError(f"--{option} must be at least {least}, not {number}")
        if windows not in LAYOUTS:
            raise ConfigError(f"--windows must be one of {', '.join(LAYOUTS)}, not {windows!r}")
        if films not in ("npy", "mkv", "avi"):
            raise ConfigError(f"--films must be npy, mkv or avi, not {films!r}")
        size, tables = circle_size(mask, False), []
        for id, theatre in self._theatres.items():
            observer = theatre.observer
            clips = (
                library_of(self.recording(id)) if library is None else library_at(Path(library), observer.frame_size)
            )
            device = getattr(observer, "device", None)
            whole = (5 if device is not None and device.type == "cuda" else 0) if recall is None else recall
            done: list[search.Searched] = []

            def make(
                id: str = id, theatre: Theatre = theatre, clips: Library = clips, whole: int = whole,
                done: list[search.Searched] = done,
            ) -> dict[str, Any]:  # fmt: skip
                reasons: dict[int, str] = {}
                layout = LAYOUTS[windows].within(theatre.observer.longest)
                areas = self._areas(id, self._neurons[id], size, reasons)
                served = np.array([n for n in self._neurons[id].tolist() if n not in reasons], np.int64)
                if not len(served):
                    return search.table([], clips, self._neurons[id], reasons)
                found = shortlist(
                    theatre.observer, clips, served, layout.pattern, listed, folder=theatre.folder,
                    progress=theatre.progress,
                )  # fmt: skip
                dark = np.zeros((1, layout.frames, *theatre.observer.frame_size), np.uint8)
                unpredicted = layout.frames - theatre.observer.answer(dark).shape[-1]
                everything = search.every_clip(clips, layout.pattern, unpredicted)
                for row, n in enumerate(served.tolist()):
                    done.append(
                        search.search(
                            theatre, layout, clips, found, row, n, areas.get(n), still=still, everything=everything,
                            complete=row < whole, seed=self.seed,
                        )
                    )  # fmt: skip
                if self.out is not None:
                    folder = self.out / theatre.observer.mouse.session / "search"
                    for one in done:
                        write_film(folder / f"neuron_{one.neuron}.{films}", one.film)
                return search.table(done, clips, self._neurons[id], reasons)

            def picture(table: pd.DataFrame, path: Path, done: list[search.Searched] = done) -> None:
                _draw_clips(done, table, path)

            options = {
                "size": size,
                "listed": listed,
                "still": still,
                "recall": whole,
                "windows": windows,
                "films": films,
            }
            tables.append(self._keep("search", options, observer, [clips.identity], make, picture, search.notes))
        return pd.concat(tables, ignore_index=True)


def _draw_clips(done: Sequence[search.Searched], table: pd.DataFrame, path: Path) -> None:
    from viv1t.plot.films import films

    if done:
        shown = done[:12]
        answers = [
            {"best clip": float(o.answers.max()), "drawn": float(np.median(o.random)), "grey": o.grey} for o in shown
        ]
        names = [f"neuron {one.neuron}" for one in shown]
        films([o.film for o in shown], answers, names, path, title=f"Best clips, mouse {table['mouse'].iloc[0]}")
