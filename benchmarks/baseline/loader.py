"""Other ways to deliver the same batches: the published model's plain way, and what a good engineer would write.

All are given the same files, crops and transforms as the engine, and deliver equal batches, except `Pread`, which
reads the bytes and does nothing with them.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.managers import DictProxy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from viv1t.data.reader import BatchPlan, Sample
from viv1t.data.session import VARIABLES, Place, Session
from viv1t.data.transform import Transform

Arrays = dict[str, Tensor]  # one batch, by variable
MAX_FRAMES = 300


class TrialDataset(Dataset[Arrays]):
    """One mouse, one trial an item, whole arrays loaded, converted and transformed, statistics behind a proxy."""

    def __init__(self, session: Session, samples: Sequence[Sample], statistics: DictProxy[str, Any]) -> None:
        folders = {"video": "videos", "response": "responses", "behavior": "behavior", "pupil_center": "pupil_center"}
        self.folders = {v: session.path / "data" / name for v, name in folders.items()}
        self.samples, self.statistics = samples, statistics

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> Arrays:
        sample = self.samples[item]
        crop = slice(sample.first_frame, sample.first_frame + sample.frames)
        trial = {}
        for variable in VARIABLES:
            array = np.load(self.folders[variable] / f"{sample.trial_id}.npy").astype(np.float32)[..., :MAX_FRAMES]
            offset, scale = self.statistics[variable]
            array = (array - offset[..., : array.shape[-1]]) * scale[..., : array.shape[-1]]
            if variable == "video":
                array = array.transpose(2, 0, 1)[None]
            trial[variable] = torch.from_numpy(np.ascontiguousarray(array[:, crop]))
        return trial


class PublishedLoader:
    """Two worker processes for each mouse, statistics shared through a manager's proxy dictionary."""

    def __init__(
        self, sessions: Mapping[str, Session], transforms: Mapping[str, Transform], plans: Sequence[BatchPlan], _: int
    ) -> None:
        self.manager = multiprocessing.Manager()
        self.order = [plan.mouse_id for plan in plans]
        self.loaders = {}
        for mouse, session in sessions.items():
            affine = transforms[mouse].affine
            statistics = self.manager.dict({v: (affine[v].offset, affine[v].scale) for v in VARIABLES})
            samples = [sample for plan in plans if plan.mouse_id == mouse for sample in plan.samples]
            self.loaders[mouse] = DataLoader(
                TrialDataset(session, samples, statistics),
                batch_size=max(len(plan.samples) for plan in plans),
                num_workers=2,
                persistent_workers=True,
            )

    def __iter__(self) -> Iterator[Arrays]:
        batches = {mouse: iter(loader) for mouse, loader in self.loaders.items()}
        return (next(batches[mouse]) for mouse in self.order)

    def close(self) -> None:
        self.loaders.clear()
        self.manager.shutdown()


class BatchDataset(Dataset[Arrays]):
    """One batch an item: mapped files, the crop alone converted and transformed, straight into the batch."""

    def __init__(
        self, sessions: Mapping[str, Session], transforms: Mapping[str, Transform], plans: Sequence[BatchPlan]
    ) -> None:
        self.sessions, self.plans, self.affine = sessions, plans, {m: t.affine for m, t in transforms.items()}
        self.stacks: dict[Path, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, item: int) -> Arrays:
        plan = self.plans[item]
        session = self.sessions[plan.mouse_id]
        batch = {}
        for variable in VARIABLES:
            rows, frames = session.rows(variable), plan.frames
            assert frames is not None
            video = variable == "video"
            out = np.empty((len(plan.samples), *((frames, *rows) if video else (*rows, frames))), np.float32)
            for row, sample in zip(out, plan.samples, strict=True):
                first, last = sample.first_frame, sample.first_frame + sample.frames
                offset, scale = self.affine[plan.mouse_id][variable].part(first, sample.frames)
                raw = self._map(session.place(variable, sample.trial_id))[..., first:last]
                view = np.moveaxis(row, 0, -1) if video else row
                np.subtract(raw, offset, out=view, dtype=np.float32, casting="unsafe")
                view *= scale
            batch[variable] = torch.from_numpy(out[:, None] if video else out)
        return batch

    def _map(self, place: Place) -> np.ndarray:
        """The trial, (rows..., T), from its file, which stays mapped if it holds many."""
        if not place.frames_first:
            return np.load(place.path, mmap_mode="r")
        if place.path not in self.stacks:
            self.stacks[place.path] = np.load(place.path, mmap_mode="r")
        return np.moveaxis(self.stacks[place.path][place.index], 0, -1)


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

        self.sessions, self.plans, self.affine = sessions, plans, {m: t.affine for m, t in transforms.items()}
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
            assert plan.frames is not None
            batch = {}
            for variable in VARIABLES:
                rows = self.sessions[plan.mouse_id].rows(variable)
                shape = (1, plan.frames, *rows) if variable == "video" else (*rows, plan.frames)
                batch[variable] = torch.empty((len(plan.samples), *shape))
            for row, sample in enumerate(plan.samples):
                for variable, raw in next(stream).items():
                    offset, scale = self.affine[plan.mouse_id][variable].part(sample.first_frame, sample.frames)
                    out = batch[variable][row].numpy()
                    view = np.moveaxis(out[0], 0, -1) if variable == "video" else out
                    np.subtract(raw, offset, out=view, dtype=np.float32, casting="unsafe")
                    view *= scale
            yield batch
        for _ in stream:  # what fills up the last batch
            pass

    def _samples(self) -> Iterator[dict[str, np.ndarray]]:
        """Crops (rows..., frames), raw."""
        for _ in range(self.runs):
            outputs = self.pipeline.run()
            for i in range(self.size):
                arrays = [output.at(i) for output in outputs]
                stacked = arrays[0].ndim == 4
                yield {
                    v: np.moveaxis(a[0], 0, -1) if stacked else a for v, a in zip(VARIABLES, arrays, strict=True)
                }

    def close(self) -> None:
        del self.pipeline


class Pread:
    """As many threads, reading the bytes that the batches are made of, and doing nothing with them: an upper bound."""

    def __init__(self, sessions: Mapping[str, Session], _: object, plans: Sequence[BatchPlan], workers: int) -> None:
        self.workers = workers
        self.reads = [
            [self._range(sessions[plan.mouse_id], v, sample) for sample in plan.samples for v in VARIABLES]
            for plan in plans
        ]
        self.largest = max(count for reads in self.reads for _, _, count in reads)

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

        def read(ranges: list[tuple[Path, int, int]]) -> Arrays:
            if not hasattr(own, "buffer"):
                own.buffer = memoryview(bytearray(self.largest))
            for path, first, count in ranges:
                file = os.open(path, os.O_RDONLY)
                os.preadv(file, [own.buffer[:count]], first)
                os.close(file)
            return {}

        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(read, self.reads)

    def close(self) -> None:
        pass
