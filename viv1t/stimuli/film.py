"""Movies: any video file as a stimulus, 30 Hz grey levels at the model's size, streamed with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from viv1t.errors import ConfigError
from viv1t.stimuli import dali
from viv1t.stimuli.decode import VideoInfo, decode, probe
from viv1t.stimuli.frames import Resize, resample, resampled_length

CHUNK_BYTES = 32 << 20  # of luma that is decoded before it is resized


class Movie:
    """A video file as a stimulus.

    DALI decodes on a GPU where it can take the file, PyAV elsewhere; from the luma on, all is the same.

    Args:
        path: the video: H.264, HEVC, VP8, VP9, AV1, MJPEG or what else FFmpeg reads, in mp4, mkv, webm, avi or mov.
        frame_size: (H, W) of the stimulus in pixels.
        fit: crop, pad or stretch; see `Resize`.
        device: where the stimulus is made.
        decoder: `dali` or `pyav`; None for the best that can.

    Attributes:
        info: what is known of the video.
        frames: T, its 30 Hz frames.
        decoder: which one is used.
        reason: why it is not DALI, "" where it is.

    Raises:
        DataError: the file is missing, damaged or cannot be decoded.
        ConfigError: an unknown `fit` or `decoder`, or DALI was asked for and cannot take the file.
    """

    def __init__(
        self,
        path: str | Path,
        frame_size: tuple[int, int],
        fit: str = "crop",
        device: torch.device | str = "cpu",
        decoder: str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.info = info = probe(Path(path))
        self.frames = resampled_length(info.end)
        if decoder not in (None, "dali", "pyav"):
            raise ConfigError(f"--decoder must be dali or pyav, not {decoder}")
        self.reason = "PyAV was asked for" if decoder == "pyav" else dali.obstacle(info, self.device)
        if decoder is None and self.device.type != "cuda":
            self.reason = "PyAV is faster on the CPU"
        if decoder == "dali" and self.reason:
            raise ConfigError(f"{path}: DALI cannot decode it: {self.reason}; use --decoder pyav")
        self.decoder = "pyav" if self.reason else "dali"
        self._resize = Resize(
            info.size, frame_size, fit, bits=info.bits, full_range=info.full_range, pixel_aspect=info.pixel_aspect,
            rotation=info.rotation, mirrored=info.mirrored, device=self.device,
        )  # fmt: skip
        height, width = info.size
        self._chunk = max(1, min(64, CHUNK_BYTES // (height * width)))

    def chunks(self) -> Iterator[Tensor]:
        """The stimulus piece by piece: (n, H, W) float32 grey levels of 0 to 255, together `frames` frames.

        Raises:
            DataError: the file is damaged.
        """
        decoded = dali.chunks if self.decoder == "dali" else _pyav_chunks
        yield from resample(decoded(self.info, self._chunk, self.device), self.info.end, self._resize)

    def read(self) -> Tensor:
        """The whole stimulus, (T, H, W); raises as `chunks`."""
        return torch.cat(list(self.chunks()))


def _pyav_chunks(info: VideoInfo, frames: int, device: torch.device) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The frames of a video, up to `frames` at a time, on a device: times (n,) and luma (n, H, W); as `decode`."""
    import torch

    decoded = decode(info)
    while some := list(islice(decoded, frames)):
        luma = np.stack([luma for _, luma in some]) if len(some) > 1 else some[0][1][None]
        luma = luma if luma.dtype == np.uint8 else luma.astype(np.float32)
        yield np.array([time for time, _ in some]), torch.from_numpy(luma).to(device)
