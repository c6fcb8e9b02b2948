"""Natural movies to cut clips from, and those clips of them that a model says neurons answer most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from viv1t.data.mice import choose_sessions
from viv1t.data.session import Session
from viv1t.errors import ConfigError, DataError
from viv1t.lab.exciting import log_spectrum
from viv1t.lab.observers import Observer, digest_of
from viv1t.lab.recorded import film_of
from viv1t.stimuli.film import Movie
from viv1t.system.files import replacing
from viv1t.system.progress import Progress

STEP = 5  # frames between clips, as published
_SAMPLE = 200  # clips that stand for all
_VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v")


@dataclass(frozen=True)
class Library:
    """Movies of a screen.

    Attributes:
        names: of each; `trial <n>` of a recording, or a file.
        film: gives the movie of a place among them, (T, H, W) uint8 grey levels.
        identity: a digest of what they are.
    """

    names: tuple[str, ...]
    film: Callable[[int], np.ndarray]
    identity: str

    def __len__(self) -> int:
        return len(self.names)


def library_of(session: Session) -> Library:
    """The training movies of a recording.

    Raises:
        DataError: there is none.
    """
    trials = session.trials("train")
    if not trials:
        raise DataError(f"mouse {session.mouse.id}: no trial of the tier train, whose movies a library is made of")
    names = tuple(f"trial {t}" for t in trials)
    return Library(
        names, lambda i: film_of(session, trials[i]), digest_of([str(session.path).encode(), repr(trials).encode()])
    )


def library_at(path: Path, frame_size: tuple[int, int]) -> Library:
    """The movies of a folder: its films (.npy of grey levels (T, H, W), or videos), or the training movies of the
    recordings in it.

    Raises:
        ConfigError: nothing is there.
        DataError: a film is damaged or of another size.
    """
    films = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix.lower() in (".npy", *_VIDEOS))
    if films:
        facts = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}".encode() for p in films]
        return Library(tuple(p.name for p in films), lambda i: _film_at(films[i], frame_size), digest_of(facts))
    if not path.is_dir():
        raise ConfigError(f"--library {path}: no such file or folder")
    parts = [library_of(session) for session in choose_sessions(path, data="--library ").values()]
    places = [(part, i) for part in parts for i in range(len(part))]
    names = tuple(part.names[i] for part, i in places)
    return Library(names, lambda k: places[k][0].film(places[k][1]), digest_of([p.identity.encode() for p in parts]))


def _film_at(path: Path, frame_size: tuple[int, int]) -> np.ndarray:
    if path.suffix.lower() in _VIDEOS:
        return (
            torch.cat([*Movie(path, frame_size, "crop", torch.device("cpu")).chunks()]).numpy().round().astype(np.uint8)
        )
    try:
        film = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"--library {path}: cannot be read ({' '.join(str(error).split())[:100]})") from error
    if film.ndim != 3 or film.shape[1:] != frame_size or film.dtype.kind not in "fiu" or not len(film):
        raise DataError(
            f"--library {path}: expected grey levels (T, {frame_size[0]}, {frame_size[1]}), found {film.shape}"
        )
    if not np.isfinite(film).all() or film.min() < 0 or film.max() > 255:
        raise DataError(f"--library {path}: expected grey levels from 0 to 255")
    return np.rint(film).astype(np.uint8)


class Sample:
    """A few clips, spread evenly over a library, that say what its clips are like.

    Raises:
        DataError: no movie is as long as a clip.
    """

    def __init__(self, library: Library, frames: int) -> None:
        chosen = np.unique(np.linspace(0, len(library) - 1, min(_SAMPLE // 2, len(library))).astype(int))
        clips = []
        for i in chosen:
            film = library.film(int(i))
            starts = range(0, len(film) - frames + 1, frames)
            each = -(-_SAMPLE // len(chosen))
            clips += [film[s : s + frames] for s in starts][:: max(1, len(starts) // each)]
        if not clips:
            raise DataError(f"no movie of the library is as long as a clip of {frames} frames")
        self.clips = np.stack(clips)

    def rms(self, mask: np.ndarray | None) -> float:
        """The median standard deviation of a clip, grey levels, under a mask (H, W)."""
        seen = self.clips.reshape(*self.clips.shape[:2], -1) if mask is None else self.clips[:, :, mask]
        return float(np.median(seen.astype(np.float64).std(axis=(1, 2))))

    def spectrum(self) -> torch.Tensor:
        """(H W,) mean log power over spatial frequencies."""
        return torch.stack([log_spectrum(torch.from_numpy(clip).float()) for clip in self.clips]).mean(0)


@dataclass(frozen=True)
class Shortlist:
    """Clips that a model says neurons answer most in the whole movies.

    Attributes:
        movie: (n, K) place in the library, the most promising first; -1 where there are fewer clips.
        first: (n, K) first frame.
        promised: (n, K) summed response; NaN where there is none.
        seen: clips that were looked at.
    """

    movie: np.ndarray
    first: np.ndarray
    promised: np.ndarray
    seen: int


def shortlist(
    observer: Observer,
    library: Library,
    neurons: np.ndarray,
    frames: int,
    count: int,
    *,
    movies: Sequence[int] | None = None,
    step: int = STEP,
    sign: int = 1,
    folder: Path | None = None,
    progress: bool = False,
) -> Shortlist:
    """Predicts whole movies once, and keeps the clips whose frames sum up to the most.

    Args:
        observer: who answers.
        library: the movies.
        neurons: (n,) which of the N.
        frames: of a clip.
        count: K, clips a neuron.
        movies: places in the library; None is all.
        step: frames between clips.
        sign: -1 keeps those that sum up to the least.
        folder: keeps sums of each movie, `<folder>/<digest>/<movie>.npy`, so that an interrupted search goes on.
        progress: whether a line shows how far it is.
    """
    parts = [observer.identity, library.identity, repr((frames, step))]
    place = None if folder is None else folder / digest_of([*(p.encode() for p in parts), neurons.tobytes()])
    best = np.full((len(neurons), count), -np.inf)
    where = np.full((len(neurons), count, 2), -1)
    chosen, seen = range(len(library)) if movies is None else movies, 0
    line = Progress(f"whole movies, mouse {observer.mouse.id}", len(chosen), "movies", show=progress)
    for movie in chosen:
        kept = None if place is None else place / f"{movie:05d}.npy"
        sums = _kept(kept, len(neurons))
        if sums is None:
            answer = observer.answer_long(library.film(movie))[neurons]
            sums = _window_sums(answer, frames, step)
            if kept is not None:
                with replacing(kept) as temporary:
                    np.save(temporary, sums)
        value = sign * np.where(np.isfinite(sums), sums, -sign * np.inf).astype(np.float64)
        seen += int(np.isfinite(sums).any(0).sum())
        places = np.stack([np.full(sums.shape[1], movie), np.arange(sums.shape[1]) * step], axis=1)
        value = np.concatenate([best, value], axis=1)
        places = np.concatenate([where, np.broadcast_to(places, (len(neurons), *places.shape))], axis=1)
        order = np.argsort(-value, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(value, order, axis=1)
        where = np.take_along_axis(places, order[..., None], axis=1)
        line.step()
    line.close()
    there = np.isfinite(best)
    where[~there] = -1
    return Shortlist(where[..., 0], where[..., 1], np.where(there, sign * best, np.nan), seen)


def _window_sums(answer: np.ndarray, frames: int, step: int) -> np.ndarray:
    """(n, T) to the sums over windows of `frames`, one every `step`: (n, windows) float32; NaN where a frame is."""
    if answer.shape[1] < frames:
        return np.empty((len(answer), 0), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(answer.astype(np.float64), frames, axis=1)[:, ::step]
    return windows.sum(-1).astype(np.float32)


def _kept(path: Path | None, neurons: int) -> np.ndarray | None:
    if path is None:
        return None
    try:
        sums: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return sums if sums.ndim == 2 and len(sums) == neurons and sums.dtype == np.float32 else None
