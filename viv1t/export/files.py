"""`viv1t-export`: the files of a run, or of several as an ensemble, each checked before it is kept."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import viv1t
from viv1t.data.recordings import Recordings
from viv1t.errors import ConfigError
from viv1t.export.check import Case, check_equal, precision_loss, random_cases, recorded_cases, validate_file
from viv1t.export.graph import GraphCore, GraphModel, GraphReadout
from viv1t.export.live import check_live, live_graph, live_shape, maps_agree
from viv1t.export.precision import convert
from viv1t.export.program import OPSET, check_packages, save, to_onnx
from viv1t.export.transform import GraphTransform, input_transform
from viv1t.families.sensorium2023.options import RandomReadoutConfig
from viv1t.model.cores.vivit import following_core
from viv1t.model.twin import ViV1T
from viv1t.onnx_model import FORMAT, InputTransform
from viv1t.onnx_stream import CORE_FILE as LIVE_CORE
from viv1t.runs.ensemble import data_config, load_models, open_recordings
from viv1t.runs.folder import RunFolder
from viv1t.system.files import replacing
from viv1t.types import FRAME_RATE, MAX_FRAMES

logger = logging.getLogger("viv1t")

CORE_FILE = "core.onnx"
HELD_OUT = "validation"


@dataclass(frozen=True)
class Settings:
    """How runs are exported.

    Attributes:
        transforms: the graph takes values as recorded.
        split: one file for the core, one per mouse for the rest.
        live: the same, and the core takes one frame after the other.
        precision: fp32, fp16 or int8.
        opset: version of the ONNX operators, 18 to 23.
    """

    transforms: bool = False
    split: bool = False
    live: bool = False
    precision: str = "fp32"
    opset: int = OPSET


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: of the file.
        error: of its float32 form against PyTorch, relative.
        loss: what a lower precision costs, in words; empty in float32.
    """

    path: Path
    error: float
    loss: str = ""


def export_runs(
    runs: Sequence[str | Path],
    out: Path,
    settings: Settings,
    data: str | None = None,
    mouse_ids: Sequence[str] | None = None,
) -> Iterator[Exported]:
    """Writes the files of a run; of several, of their mean prediction. Yields each once it is there.

    Args:
        runs: run folders.
        out: folder to write to.
        settings: how.
        data: folder of recordings; default the one the first run was trained on, if it is there.
        mouse_ids: these mice only.

    Raises:
        CheckpointError: a run or its checkpoint is missing or damaged, or a file does not give what PyTorch gives.
        ConfigError: what is asked for does not go together, the folder cannot be written, or a package is missing.
        DataError: the recordings are missing, damaged or not those of the runs.
    """
    check_packages()
    folders = [RunFolder(run) for run in runs]
    models, mice = load_models(folders, torch.device("cpu"), mouse_ids)
    check_exportable(models, settings)
    for model in models:  # whatever it was trained in
        model.autocast = "never"
    place = Path(data_config(folders, data, mice).path)
    recordings = None
    if data is not None or place.is_dir():
        recordings = open_recordings(folders, models, data, mice)
    elif settings.transforms:
        raise ConfigError(f"--transforms needs the recordings' statistics, but {place} is not there; give --data")
    else:
        logger.warning("%s is not there: neuron ids and statistics are left out; --data puts them in", place)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir {out} cannot be written: {error.strerror}") from error
    with closing(recordings) if recordings is not None else nullcontext():
        job = _Job(folders, models, recordings, out, settings)
        yield from job.parts(mice) if settings.split or settings.live else map(job.whole, mice)


def check_exportable(models: Sequence[ViV1T], settings: Settings) -> None:
    """Raises a ConfigError for what cannot be exported."""
    if any(isinstance(model.config.readout, RandomReadoutConfig) for model in models):
        raise ConfigError("--readout random predicts noise: there is nothing to export")
    if len(models) > 1:
        if len({model.frame_size for model in models}) > 1:
            raise ConfigError("the runs cannot form an ensemble: they take frames of different sizes")
        if any(getattr(model.config.core, "temporal_patch_stride", 1) > 1 for model in models):
            raise ConfigError("runs with --core_temporal_patch_stride above 1 cannot form an ensemble")
    if settings.live:
        for model in models:
            following_core(model.core)
    if settings.split or settings.live:
        flag = "--live" if settings.live else "--split"
        if len(models) > 1:
            raise ConfigError(f"{flag} takes one run: an ensemble has no core that all its readouts share")
        if settings.transforms:
            raise ConfigError(
                f"{flag} cannot take --transforms: the core serves all mice, a transform is of one"
                + ("; OnnxStream(files, recorded=True) takes values as recorded" if settings.live else "")
            )
    if settings.split and models[0].config.core.behavior == "state_encoding_per_mouse":
        raise ConfigError("--split needs a core that all mice share, but --core_behavior_mode 5 has parts of each")


class _Job:
    """One call of `export_runs`."""

    def __init__(
        self,
        folders: Sequence[RunFolder],
        models: Sequence[ViV1T],
        recordings: Recordings | None,
        out: Path,
        settings: Settings,
    ) -> None:
        self.folders, self.models, self.recordings, self.out, self.settings = folders, models, recordings, out, settings
        self.frame_size = models[0].frame_size
        self.fewest = max(model.core.fewest_frames for model in models)

    def whole(self, mouse_id: str) -> Exported:
        """One file with everything for a mouse."""
        transform = self._transform(mouse_id)
        raw = transform if self.settings.transforms else None
        graph = GraphModel(self.models, mouse_id, None if raw is None else GraphTransform(raw))

        def model(video: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
            every = [model(video, mouse_id, behavior, pupil_center) for model in self.models]
            frames = min(response.shape[2] for response in every)
            return torch.stack([response[..., -frames:] for response in every]).mean(dim=0)

        metadata = self._metadata("model", mouse_id, transform)
        return self._write(f"{mouse_id}.onnx", graph, model, "response", metadata, self._cases(mouse_id, raw))

    def parts(self, mice: Sequence[str]) -> Iterator[Exported]:
        """The core, then a readout per mouse."""
        model = self.models[0]

        def core(video: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
            return model.core_output(video, mice[0], behavior, pupil_center)

        live = self.settings.live
        shared = {"core": LIVE_CORE, "export": _digest(model)} if live else {"core": CORE_FILE}
        if live:
            yield self._live_core(shared["export"])
        else:
            metadata, cases = self._metadata("core", "", None), self._cases(mice[0], None)
            yield self._write(CORE_FILE, GraphCore(model), core, "maps", metadata, cases)
        part = "live readout" if live else "readout"
        for mouse_id in mice:
            metadata = self._metadata(part, mouse_id, self._transform(mouse_id)) | shared
            cases = [_for_readout(case, core) for case in self._cases(mouse_id, None)]
            graph, whole = GraphReadout(model, mouse_id), partial(model, mouse_id=mouse_id)
            name = f"{'live' if live else 'readout'}_{mouse_id}.onnx"
            yield self._write(name, graph, whole, "response", metadata, cases)

    def _live_core(self, export: str) -> Exported:
        """The core for one frame after the other, compared with PyTorch's for a whole movie."""
        model, path, precision = self.models[0], self.out / LIVE_CORE, self.settings.precision
        shape = live_shape(following_core(model.core))
        frames = shape.window + 20 * shape.stride
        graph = live_graph(model, shape, self.settings.opset)
        metadata = self._metadata("live core", "", None)
        metadata |= {"precision": precision, "export": export, "live": json.dumps(asdict(shape))}
        with replacing(path) as temporary:
            save(graph, temporary, metadata)
            validate_file(temporary)
            error, loss = check_live(temporary, shape, model, frames), ""
            if precision != "fp32":
                with replacing(temporary) as converted:
                    convert(temporary, converted, precision)
                    validate_file(converted)
                    same = maps_agree(converted, temporary, shape, self.frame_size, frames)
                    loss = f"{precision}: maps correlate {same:.5f} with float32 on a random movie"
        return Exported(path, error, loss)

    def _write(
        self,
        name: str,
        graph: nn.Module,
        model: Callable[..., Tensor],
        output: str,
        metadata: Mapping[str, str],
        cases: Sequence[Case],
    ) -> Exported:
        """Exports `graph`, compares with `model`, converts."""
        path, precision = self.out / name, self.settings.precision
        example = {key: torch.from_numpy(array) for key, array in cases[0].feed.items()}
        exported = to_onnx(graph.eval(), example, output, self.settings.opset)
        with replacing(path) as temporary:
            save(exported, temporary, {**metadata, "precision": precision})
            validate_file(temporary)
            error = check_equal(temporary, model, cases)
            loss = ""
            if precision != "fp32":
                with replacing(temporary) as converted:
                    convert(temporary, converted, precision)
                    validate_file(converted)
                    loss = precision_loss(converted, temporary, cases, precision)
        return Exported(path, error, loss)

    def _cases(self, mouse_id: str, raw: InputTransform | None) -> list[Case]:
        """What files are checked with: random inputs, the first of which also serves as the example, and real ones."""
        lengths = [self.fewest + n for n in (7, 2, 24)]
        cases = random_cases(self.frame_size, lengths, raw)
        if self.recordings is not None:
            cases += recorded_cases(
                self.recordings, mouse_id, HELD_OUT, raw is not None, self.fewest, self.settings.precision
            )
        return cases

    def _transform(self, mouse_id: str) -> InputTransform | None:
        if self.recordings is None:
            return None
        return input_transform(self.recordings.transform(mouse_id), self.frame_size)

    def _metadata(self, part: str, mouse_id: str, transform: InputTransform | None) -> dict[str, str]:
        """As `viv1t.onnx_model` describes it."""
        import onnx
        import onnxruntime

        data = self.folders[0].config().data
        most = MAX_FRAMES if data.transform != "none" or any(m.core.most_frames for m in self.models) else None
        if transform is not None and transform.frames is not None:
            most = min(transform.frames, most or transform.frames)
        mouse, levels = None, None
        medians: Mapping[str, np.ndarray] = {}
        if self.recordings is not None and mouse_id:
            mouse = self.recordings.mice[mouse_id]
            medians, levels = self.recordings.recorded(mouse_id).medians, self.recordings.movie_levels(mouse_id)
        versions = {
            "viv1t": viv1t.__version__, "torch": torch.__version__, "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "python": platform.python_version(),
        }  # fmt: skip
        how = {
            "mode": data.transform, "statistics": data.statistics, "center_crop": data.center_crop,
            "in_graph": self.settings.transforms,
        }  # fmt: skip
        return {
            "format": FORMAT,
            "part": part,
            "mouse": mouse_id,
            "session": mouse.session if mouse else "",
            "neuron_ids": json.dumps(mouse.unit_ids.tolist()) if mouse else "",
            "frame_rate": str(FRAME_RATE),
            "frame_size": json.dumps(self.frame_size),
            "frames": json.dumps([self.fewest, most]),
            "transform": json.dumps(how),
            "transform_arrays": transform.to_text() if transform else "",
            "medians": json.dumps({name: values.tolist() for name, values in medians.items()}) if medians else "",
            "levels": json.dumps(levels) if levels else "",
            "runs": json.dumps([str(folder.path) for folder in self.folders]),
            "versions": json.dumps(versions),
        }


def _for_readout(case: Case, core: Callable[..., Tensor]) -> Case:
    """The same for a readout alone, which takes the core's maps in place of the movie."""
    with torch.no_grad():
        maps = core(**{name: torch.from_numpy(array) for name, array in case.inputs.items()}).numpy()
    return Case(case.inputs, {"maps": maps} | {n: a for n, a in case.feed.items() if n != "video"}, case.response)


def _digest(model: ViV1T) -> str:
    """Which core it is: files of one export belong together."""
    digest = hashlib.sha256()
    for name, values in model.core.state_dict().items():
        digest.update(name.encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()
