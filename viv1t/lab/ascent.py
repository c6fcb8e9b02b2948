"""Takes films uphill on a twin: several at once, within a time, and from where they were interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from viv1t.lab.climb import Climber, Found, climb
from viv1t.lab.observers import Differentiable
from viv1t.lab.present import OverBudget, Theatre
from viv1t.lab.protocols import Layout
from viv1t.stimuli.parametric import GREY
from viv1t.system.files import replacing
from viv1t.system.memory import available_bytes
from viv1t.system.progress import Progress, duration

# A film between grey. Grey that comes first shortens where a model knows shorter windows only.
EXCITING = Layout(lead=50, before=0, pattern=30, after=5, count=1)
_BATCH = {"cpu": 4, "cuda": 16}
_SAVED = 60.0  # seconds between states that are kept
_LEAST = 20  # steps for which there must be time


@dataclass(frozen=True)
class Job:
    """A film to be found.

    Attributes:
        key: a digest of all that the film depends on but how many steps are made.
        make: gives the film at its start.
        worth: of responses (N, pattern) in the models' own units, one number.
    """

    key: str
    make: Callable[[], Climber]
    worth: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reached:
    """A film that was found.

    Attributes:
        found: the film, its worth and its history.
        stopped: `converged`, `steps`, or `budget` where there was no time for more.
    """

    found: Found
    stopped: str


class Ascent:
    """Finds films for one twin.

    Args:
        theatre: of the twin; its deadline, its line of progress and its batches.
        layout: where the film lies in a trial.
        folder: keeps the state of each film, `<folder>/<key>.npz`; None keeps nothing.
        dropout: whether each step asks one model of an ensemble, drawn at random, in place of their mean.
        seed: of that draw.
    """

    def __init__(
        self, theatre: Theatre, layout: Layout, folder: Path | None, *, dropout: bool = False, seed: int = 0
    ) -> None:
        assert isinstance(theatre.observer, Differentiable)
        self.theatre, self.twin, self.folder = theatre, theatre.observer, folder
        self.layout = layout.within(self.twin.longest)
        self.dropout, self.seed = dropout and len(self.twin.models) > 1, seed

    def responses(self, films: Sequence[Tensor], member: int | None = None) -> Tensor:
        """(b, N, pattern) responses during films (pattern, H, W), in the models' own units."""
        grey = torch.full((1, *self.twin.frame_size), float(GREY), device=self.twin.device)
        lead, after = self.layout.lead + self.layout.before, self.layout.after
        whole = [torch.cat([grey.expand(lead, -1, -1), f, grey.expand(after, -1, -1)]) for f in films]
        predicted = self.twin.drive(whole, member)
        first = lead - (self.layout.frames - predicted.shape[-1])
        return predicted[..., first : first + self.layout.pattern]

    def _objective(self, jobs: Sequence[Job], climbers: Sequence[Climber]) -> Callable[..., Tensor]:
        def objective(films: Sequence[Tensor], places: Sequence[int]) -> Tensor:
            member = None
            if self.dropout:
                step = min(climbers[i].steps for i in places)
                member = int(np.random.default_rng([self.seed, step]).integers(len(self.twin.models)))
            answers = self.responses(films, member)
            return torch.stack([jobs[i].worth(answer) for i, answer in zip(places, answers, strict=True)])

        return objective

    def run(self, jobs: Sequence[Job], label: str) -> list[Reached]:
        """The films, in the order of the jobs.

        Raises:
            OverBudget: there is not even time for a few steps.
            ConfigError: a response is not finite.
        """
        with self.twin.still():
            return self._run(jobs, label)

    def _run(self, jobs: Sequence[Job], label: str) -> list[Reached]:
        mouse = self.twin.mouse.id
        climbers = [self._climber(job) for job in jobs]
        waiting = [i for i, climber in enumerate(climbers) if not climber.stopped]
        if waiting:
            size, each = self._batch([jobs[waiting[0]]], len(waiting))
            batches = [waiting[i : i + size] for i in range(0, len(waiting), size)]
            steps = sum(max(climbers[i].search.steps - climbers[i].steps for i in batch) for batch in batches)
            self._say(f"{label}, mouse {mouse}", len(waiting), steps, each * size)
            line = Progress(f"{label}, mouse {mouse}", steps, "steps", show=self.theatre.progress)
            for number, batch in enumerate(batches):
                self._go([jobs[i] for i in batch], [climbers[i] for i in batch], len(batches) - number, line)
            line.close()
        return [Reached(climber.found(), climber.stopped or "budget") for climber in climbers]

    def _say(self, label: str, films: int, steps: int, seconds: float) -> None:
        self.theatre.say(
            f"{label}: {films} films, at most {steps} steps of about {seconds:.2g} s, {duration(steps * seconds)}"
        )
        deadline = self.theatre.deadline
        if deadline is not None and (left := deadline - time.monotonic()) < _LEAST * seconds:
            raise OverBudget(
                f"mouse {self.twin.mouse.id}: {_LEAST} steps of a film take {duration(_LEAST * seconds)}, and "
                f"{duration(left)} of --budget is left: give more, or fewer --neurons or --starts"
            )

    def _go(self, jobs: Sequence[Job], climbers: Sequence[Climber], batches: int, line: Progress) -> None:
        """Takes one batch as far as its share of the time goes."""
        start, deadline = time.monotonic(), self.theatre.deadline
        end = None if deadline is None else start + max(deadline - start, 0) / batches
        saved, before = start, [climber.steps for climber in climbers]
        objective = self._objective(jobs, climbers)
        most = max(climber.search.steps - steps for climber, steps in zip(climbers, before, strict=True))
        made = 0
        while climb(objective, climbers):
            made += 1
            line.step(f"best {max(climber.value for climber in climbers):.4g}")
            now = time.monotonic()
            if now - saved > _SAVED:
                self._save(jobs, climbers)
                saved = now
            if end is not None and now > end:
                break
        line.step(count=most - made)
        self._save(jobs, climbers)

    def _place(self, job: Job) -> Path | None:
        return None if self.folder is None else self.folder / f"{job.key}.npz"

    def _save(self, jobs: Sequence[Job], climbers: Sequence[Climber]) -> None:
        for job, climber in zip(jobs, climbers, strict=True):
            if (place := self._place(job)) is not None and climber.steps:
                with replacing(place) as temporary, open(temporary, "wb") as file:
                    np.savez(file, **climber.state())  # type: ignore[arg-type]

    def _climber(self, job: Job) -> Climber:
        """The film where it was left; at its start where nothing was kept, or what was kept is damaged."""
        climber, place = job.make(), self._place(job)
        if place is None or not place.is_file():
            return climber
        try:
            with np.load(place, allow_pickle=False) as arrays:
                climber.resume(dict(arrays))
        except Exception:  # a damaged archive fails in ways of its own: what it held is found again
            return job.make()
        return climber

    def _batch(self, jobs: Sequence[Job], films: int) -> tuple[int, float]:
        """How many films half of the free memory holds a step of, and the seconds that a step of one takes."""
        took = [0.0]

        def step() -> None:
            start = time.monotonic()
            climber = jobs[0].make()
            climb(self._objective(jobs, [climber]), [climber])
            took[0] = time.monotonic() - start

        one = self.theatre.added(step)
        if took[0] < 2:  # the first is slower than those that follow
            step()
        if self.theatre.batch_size is not None:
            return min(self.theatre.batch_size, films), took[0]
        kind = self.twin.device.type
        free = torch.cuda.mem_get_info(self.twin.device)[0] if kind == "cuda" else available_bytes()
        return int(np.clip(free // (2 * max(one, 1)), 1, min(_BATCH.get(kind, 4), films))), took[0]
