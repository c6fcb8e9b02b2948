"""Other ways to deliver the same batches: the published model's plain way, and what a good engineer would write.

All are given the same files, crops and transforms as the engine, and deliver equal batches, except `Pread`, which
reads the bytes and does nothing with them. Like the engine's, responses of packed recordings come as they lie, a view
of (B, T, N); the published way, which knows recorded sessions only, makes every trial contiguous.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from viv1t.data.reading.reader import BatchPlan, Sample
from viv1t.data.session import VARIABLES, Place, Session
from viv1t.data.transform import Affine, Transform

Arrays = dict[str, Tensor]  # one batch, by variable
MAX_FRAMES = 300
SLOTS = 4  # batches that the engine keeps in memory: three ahead, one in use


class TrialDataset(Dataset[Arrays]):
    """One mouse, one trial an item: whole arrays loaded, converted and transformed, then cropped."""

    def __init__(self, session: Session, samples: Sequence[Sample], affine: Mapping[str, Affine]) -> None:
        folders = {"video": "videos", "response": "responses", "behavior": "behavior", "pupil_center": "pupil_center"}
        self.folders = {v: session.path / "data" / name for v, name in folders.items()}
        self.samples, self.affine = samples, affine

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> Arrays:
        sample = self.samples[item]
        crop = slice(sample.first_frame, sample.first_frame + sample.frames)
        trial = {}
        for variable in VARIABLES:
            array = np.load(self.folders[variable] / f"{sample.trial_id}.npy").astype(np.float32)[..., :MAX_FRAMES]
            offset, scale = self.affine[variable].part(0, array.shape[-1])
            if variable != "response":
                array = array - offset
            array = array * scale
            if variable == "video":
                array = array.transpose(2, 0, 1)[None]
            trial[variable] = torch.from_numpy(np.ascontiguousarray(array[:, crop]))
        return trial


class PublishedLoader:
    """A DataLoader for each mouse, of two worker processes or none.

    The processes share the statistics by being forked, which costs nothing while batches are made, and live on from
    epoch to epoch.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        transforms: Mapping[str, Transform],
        plans: Sequence[BatchPlan],
        _: int,
        processes: int = 2,
    ) -> None:
        self.order = [plan.mouse_id for plan in plans]
        self.loaders = {}
        for mouse, session in sessions.items():
            samples = [sample for plan in plans if plan.mouse_id == mouse for sample in plan.samples]
            self.loaders[mouse] = DataLoader(
                TrialDataset(session, samples, transforms[mouse].affine),
                batch_size=max(len(plan.samples) for plan in plans),
                num_workers=processes,
                multiprocessing_context="fork" if processes else None,
                persistent_workers=processes > 0,
            )

    def __iter__(self) -> Iterator[Arrays]:
        batches = {mouse: iter(loader) for mouse, loader in self.loaders.items()}
        return (next(batches[mouse]) for mouse in self.order)

    def close(self) -> None:
        self.loaders.clear()


class Stacker:
    """Transforms crops straight into batches, which lie in memory like the engine's."""

    def __init__(self, sessions: Mapping[str, Session], transforms: Mapping[str, Transform]) -> None:
        self.sessions, self.transforms = sessions, transforms
        self.tables: dict[tuple[str, str], tuple[np.ndarray | None, np.ndarray]] = {}

    def time_first(self, mouse: str, variable: str) -> bool:
        """Whether time lies before neurons or pixels."""
        session = self.sessions[mouse]
        return variable == "video" or session.place(variable, session.trials("train")[0]).frames_first

    def empty(self, plan: BatchPlan) -> tuple[dict[str, np.ndarray], Arrays]:
        """A batch's memory, and the batch."""
        memory, batch = {}, {}
        for variable in VARIABLES:
            rows, count, frames = self.sessions[plan.mouse_id].rows(variable), len(plan.samples), plan.frames
            assert frames is not None
            time_first = self.time_first(plan.mouse_id, variable)
            memory[variable] = np.empty((count, frames, *rows) if time_first else (count, *rows, frames), np.float32)
            tensor = torch.from_numpy(memory[variable])
            batch[variable] = tensor[:, None] if variable == "video" else tensor.mT if time_first else tensor
        return memory, batch

    def write(self, out: np.ndarray, raw: np.ndarray, mouse: str, variable: str, first: int) -> None:
        """Fills a trial's memory with the frames `raw` (T, rows...), of which `first` is the first one's number."""
        time_first = self.time_first(mouse, variable)
        if (mouse, variable) not in self.tables:
            affine = self.transforms[mouse].affine[variable]
            laid = [np.moveaxis(a, -1, 0).copy() if time_first else a for a in (affine.offset, affine.scale)]
            self.tables[mouse, variable] = laid[0] if laid[0].any() else None, laid[1]
        offset, scale = self.tables[mouse, variable]
        frames = slice(first, first + len(raw))
        cut: Any = frames if time_first else (..., frames)
        raw = raw if time_first else np.moveaxis(raw, 0, -1)
        if offset is None:
            np.multiply(raw, scale[cut], out=out, dtype=np.float32, casting="unsafe")
        else:
            np.subtract(raw, offset[cut], out=out, dtype=np.float32, casting="unsafe")
            out *= scale[cut]


class BatchDataset(Dataset[Arrays]):
    """One batch an item: mapped files, the crop alone converted and transformed, straight into the batch."""

    def __init__(
        self, sessions: Mapping[str, Session], transforms: Mapping[str, Transform], plans: Sequence[BatchPlan]
    ) -> None:
        self.sessions, self.plans, self.stacker = sessions, plans, Stacker(sessions, transforms)
        self.stacks: dict[Path, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, item: int) -> Arrays:
        plan = self.plans[item]
        memory, batch = self.stacker.empty(plan)
        for variable, out in memory.items():
            for row, sample in zip(out, plan.samples, strict=True):
                raw = self._crop(self.sessions[plan.mouse_id].place(variable, sample.trial_id), sample)
                self.stacker.write(row, raw, plan.mouse_id, variable, sample.first_frame)
        return batch

    def _crop(self, place: Place, sample: Sample) -> np.ndarray:
        """(T, rows...) from a mapped file, which stays mapped if it holds many trials."""
        frames = slice(sample.first_frame, sample.first_frame + sample.frames)
        if not place.frames_first:
            return np.moveaxis(np.load(place.path, mmap_mode="r")[..., frames], -1, 0)
        if place.path not in self.stacks:
            self.stacks[place.path] = np.load(place.path, mmap_mode="r")
        stack: np.ndarray = self.stacks[place.path][place.index, frames]
        return stack


class TunedLoader:
    """A DataLoader without proxies: as many worker processes as the engine has threads, whole batches, read ahead."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        transforms: Mapping[str, Transform],
        plans: Sequence[BatchPlan],
        workers: int,
    ) -> None:
        self.loader = DataLoader(
            BatchDataset(sessions, transforms, plans),
            batch_size=None,
            num_workers=workers,
            persistent_workers=True,
            prefetch_factor=4,
        )

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self.loader)

    def close(self) -> None:
        del self.loader


class SpdlLoader:
    """The same work in the threads of an SPDL pipeline."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        transforms: Mapping[str, Transform],
        plans: Sequence[BatchPlan],
        workers: int,
    ) -> None:
        self.dataset, self.workers = BatchDataset(sessions, transforms, plans), workers

    def __iter__(self) -> Iterator[Arrays]:
        from spdl.pipeline import PipelineBuilder

        builder = PipelineBuilder().add_source(range(len(self.dataset)))
        builder = builder.pipe(self.dataset.__getitem__, concurrency=self.workers, output_order="input")
        pipeline = builder.add_sink(2 * self.workers).build(num_threads=self.workers)
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()

    def close(self) -> None:
        pass


class DaliLoader:
    """DALI's numpy reader, which reads the crops in its threads; what is left is done where they come out."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        transforms: Mapping[str, Transform],
        plans: Sequence[BatchPlan],
        workers: int,
    ) -> None:
        from nvidia.dali import Pipeline, fn

        self.plans, self.stacker = plans, Stacker(sessions, transforms)
        samples = [(sessions[plan.mouse_id], sample) for plan in plans for sample in plan.samples]
        size = max(len(plan.samples) for plan in plans)
        samples += samples[-1:] * (-len(samples) % size)  # the reader starts over at a whole batch
        self.runs, self.size = len(samples) // size, size
        self.pipeline = Pipeline(size, workers, device_id=None, prefetch_queue_depth=3)
        with self.pipeline:
            self.pipeline.set_outputs(*(self._reader(fn, v, samples) for v in VARIABLES))
        self.pipeline.build()

    def _reader(self, fn: Any, variable: str, samples: Sequence[tuple[Session, Sample]]) -> Any:
        places = [session.place(variable, sample.trial_id) for session, sample in samples]
        starts, ends = [], []
        for place, (_, sample) in zip(places, samples, strict=True):
            cut, trial = (sample.first_frame, sample.first_frame + sample.frames), (place.index, place.index + 1)
            start, end = zip(trial, cut, strict=True) if place.frames_first else ((cut[0],), (cut[1],))
            starts.append(np.array(start, np.int32))
            ends.append(np.array(end, np.int32))

        def region(run: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
            first = run % self.runs * self.size
            return starts[first : first + self.size], ends[first : first + self.size]

        start, end = fn.external_source(region, num_outputs=2, cycle=None)
        return fn.readers.numpy(
            files=[str(place.path) for place in places],
            roi_axes=[0, 1] if places[0].frames_first else [len(samples[0][0].rows(variable))],  # time is the last
            roi_start=start,
            roi_end=end,
            cache_header_information=True,
            prefetch_queue_depth=2,
        )

    def __iter__(self) -> Iterator[Arrays]:
        stream = self._samples()
        for plan in self.plans:
            memory, batch = self.stacker.empty(plan)
            for row, sample in enumerate(plan.samples):
                for variable, raw in next(stream).items():
                    self.stacker.write(memory[variable][row], raw, plan.mouse_id, variable, sample.first_frame)
            yield batch
        for _ in stream:  # what fills up the last batch
            pass

    def _samples(self) -> Iterator[dict[str, np.ndarray]]:
        """Crops (frames, rows...), raw."""
        for _ in range(self.runs):
            outputs = self.pipeline.run()
            for i in range(self.size):
                arrays = [output.at(i) for output in outputs]
                stacked = arrays[0].ndim == 4
                yield {v: a[0] if stacked else np.moveaxis(a, -1, 0) for v, a in zip(VARIABLES, arrays, strict=True)}

    def close(self) -> None:
        del self.pipeline


class Pread:
    """As many threads, reading the bytes that the batches are made of, and doing nothing with them: an upper bound.

    Each thread reads into one place again and again, which stays in the caches; or, with `slots`, batches lie where the
    engine's would, in a ring of as many slots, which is larger than any cache.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        _: object,
        plans: Sequence[BatchPlan],
        workers: int,
        slots: int = 0,
    ) -> None:
        self.workers = workers
        self.reads = [
            [self._range(sessions[plan.mouse_id], v, sample) for sample in plan.samples for v in VARIABLES]
            for plan in plans
        ]
        self.largest = max(count for reads in self.reads for _, _, count in reads)
        batch = max(sum(count for _, _, count in reads) for reads in self.reads)
        self.ring = [np.empty(batch, np.uint8).data for _ in range(slots)]

    @staticmethod
    def _range(session: Session, variable: str, sample: Sample) -> tuple[Path, int, int]:
        """File, first byte and bytes; of a recording the whole file, since a crop lies scattered in it."""
        place = session.place(variable, sample.trial_id)
        if not place.frames_first:
            return place.path, 0, place.path.stat().st_size
        mapped = np.load(place.path, mmap_mode="r")
        frame, first = mapped[0, 0].nbytes, place.index * place.frames + sample.first_frame
        return place.path, mapped.offset + frame * first, frame * sample.frames

    def __iter__(self) -> Iterator[Arrays]:
        own = threading.local()

        def read(number: int) -> Arrays:
            if not hasattr(own, "buffer"):
                own.buffer = memoryview(bytearray(self.largest))
            place = 0
            for path, first, count in self.reads[number]:
                to = self.ring[number % len(self.ring)][place:] if self.ring else own.buffer
                file = os.open(path, os.O_RDONLY)
                os.preadv(file, [to[:count]], first)
                os.close(file)
                place += count
            return {}

        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(read, range(len(self.reads)))

    def close(self) -> None:
        self.ring.clear()
