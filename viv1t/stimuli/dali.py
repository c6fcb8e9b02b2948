"""Decoding with NVIDIA DALI: on a GPU by NVDEC, or on the CPU what its own decoder there takes.

Luma comes as decoded: on a GPU as the first channel of YCbCr; on the CPU, for grey full-range video only, as any
channel of RGB. Neither is DALI's grey, which is off by one here and there.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viv1t.errors import DataError
from viv1t.stimuli.decode import VideoInfo, check_end

_CPU_CODECS = {"vp8", "vp9", "mjpeg"}
_GPU_CODECS = {*_CPU_CODECS, "av1", "h264", "hevc", "mpeg4"}
_NAMES = {"libvpx": "vp8", "libvpx-vp9": "vp9", "libdav1d": "av1"}  # FFmpeg's decoders by their codecs' names
_SUPPORTED = (2,)  # major versions
_PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


@cache
def missing(device_type: str) -> str:
    """Why DALI cannot be used on this machine, asked once; "" where it can."""
    for package in _PACKAGES:
        try:
            version = importlib.metadata.version(package)
            break
        except importlib.metadata.PackageNotFoundError:
            continue
    else:
        return "it is not installed (pip install 'viv1t[dali]')"
    if int(version.split(".")[0]) not in _SUPPORTED:
        return f"its version is {version}, and not 2"
    try:
        import nvidia.dali.fn  # noqa: F401
    except (ImportError, OSError) as error:
        return f"it cannot be loaded ({error})"
    if device_type == "cuda":
        try:
            ctypes.CDLL("libnvcuvid.so.1")
        except OSError:
            return "this machine has no video decoder (libnvcuvid.so.1)"
    return ""


def obstacle(info: VideoInfo, device: torch.device) -> str:
    """Why DALI cannot decode a video on a device; "" where it can."""
    if reason := missing(device.type):
        return reason
    if device.type not in ("cpu", "cuda"):
        return f"it does not know the device {device.type}"
    on_cpu, codec = device.type == "cpu", _NAMES.get(info.codec, info.codec)
    if codec not in (_CPU_CODECS if on_cpu else _GPU_CODECS):
        return f"it does not decode {codec} on the {'CPU' if on_cpu else 'GPU'}"
    if info.pixel_format not in ("yuv420p", "yuvj420p"):
        return f"the pixel format is {info.pixel_format}, and it decodes 8-bit 4:2:0 only"
    if info.start is None:
        return "the file does not say when its frames are shown"
    if info.cuts:
        return "the video is cut by an edit list"
    if info.interlaced:
        return "the video is interlaced"
    if on_cpu and not info.full_range:
        return "its CPU decoder gives no luma of videos of limited range"
    return ""


def _pipeline(path: str, frames: int, device: torch.device) -> Any:
    """The graph: frames of one file, in sequences, with their numbers and times."""
    from nvidia.dali import Pipeline, fn, types

    kind = "gpu" if device.type == "cuda" else "cpu"
    pipeline = Pipeline(batch_size=1, num_threads=1, prefetch_queue_depth=1, device_id=device.index)
    with pipeline:
        outputs: Any = fn.experimental.readers.video(
            device=kind, filenames=[path], sequence_length=frames, pad_mode="constant", dont_use_mmap=True,
            image_type=types.YCbCr if kind == "gpu" else types.RGB, enable_frame_num="sequence", enable_timestamps=True,
        )  # fmt: skip
        pipeline.set_outputs(*outputs)
    return pipeline


def chunks(info: VideoInfo, frames: int, device: torch.device) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The frames of a video, up to `frames` at a time, on a device: times (n,) and luma (n, H, W) uint8.

    Raises:
        DataError: the file is damaged, or in colour and decoded on the CPU.
    """
    from nvidia.dali.plugin.pytorch import feed_ndarray

    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    time = 0.0
    try:
        pipeline = _pipeline(str(info.path), frames, device)
        (meta,) = pipeline.reader_meta().values()
        for _ in range(meta["epoch_size"]):
            video, numbers, times = (out.as_tensor() for out in pipeline.run())
            pixels = torch.empty(video.shape()[1:], dtype=torch.uint8, device=device)
            feed_ndarray(video, pixels[None], cuda_stream=stream)
            if stream is not None:
                stream.synchronize()  # before DALI uses its own memory again
            numbers, times = (np.array(out.as_cpu() if stream else out)[0] for out in (numbers, times))
            known = int((numbers >= 0).sum())
            time = float(times[known - 1])
            _check_times(info, numbers[:known], times[:known])
            yield info.times[numbers[:known]], _luma(info, pixels[:known])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{info.path}: DALI cannot decode it after {time:.2f} s ({reason}); use --decoder pyav"
        ) from error
    check_end(info, time)


def _check_times(info: VideoInfo, numbers: np.ndarray, times: np.ndarray) -> None:
    """DALI may keep the index of another file that had the same name, or count frames that are not shown."""
    same = numbers.max() < info.frames and np.abs(times - info.times[numbers]).max() < 2e-3
    if not same and info.start is not None:
        raise DataError(
            f"{info.path}: DALI finds other frames than PyAV, or knew another file of this name; use --decoder pyav"
        )


def _luma(info: VideoInfo, pixels: Tensor) -> Tensor:
    if pixels.device.type == "cpu" and not torch.equal(pixels[..., :1].expand_as(pixels), pixels):
        raise DataError(f"{info.path}: is in colour, of which DALI's CPU decoder gives no luma; use --decoder pyav")
    return pixels[..., 0]
