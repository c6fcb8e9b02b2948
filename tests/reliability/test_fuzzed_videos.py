"""Damaged video files by the hundred: each gives frames or one error, in bounded memory and time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it, where this file runs alone

from small_videos import moving_pattern, write_video

SIZE = (32, 48)
MEMORY = 500 << 20  # bytes that a process may have held, PyTorch and all
LONGEST = 60.0  # seconds for a file, on a machine with other work

FILMS = [
    ("libx264", "mp4", {"crf": "20", "bf": "2", "g": "6"}),
    ("libx264", "mov", {"crf": "20"}),
    ("libx264", "avi", {"crf": "20", "bf": "2"}),
    ("libx264", "mkv", {"crf": "20"}),
    ("libx264", "ts", {"crf": "20", "bf": "2"}),
    ("libx264", "flv", {"crf": "20"}),
    ("libvpx-vp9", "webm", None),
    ("libvpx-vp9", "mp4", None),
    ("libvpx", "webm", None),
    ("mpeg4", "avi", {"bf": "2"}),
    ("mpeg4", "mp4", None),
    ("mpeg2video", "mpg", {}),
    ("mjpeg", "avi", None),
    ("mjpeg", "mov", None),
    ("ffv1", "mkv", None),
    ("ffv1", "avi", None),
    ("libsvtav1", "mp4", None),
    ("rawvideo", "avi", {}),
]  # fmt: skip

NUMBERS = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"]


def films(folder: Path) -> list[Path]:
    """A film of every kind, tiny."""
    luma = moving_pattern(14, *SIZE)
    made = []
    for number, (codec, container, options) in enumerate(FILMS):
        size = (64, 64) if codec == "libsvtav1" else SIZE
        path = folder / f"film-{number}.{container}"
        write_video(
            path, luma if size == SIZE else moving_pattern(4, *size), codec, options, rotation=90 * (number % 2)
        )
        made.append(path)
    return made


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with some faults; half of them lie where headers are, near the beginning and the end."""
    found = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        size = len(found)
        if size < 16:
            break
        edge = min(size - 8, 1200)
        at = int(rng.choice([rng.integers(edge), size - 8 - rng.integers(edge), *rng.integers(size - 8, size=2)]))
        length = int(rng.integers(1, min(200, size - at)))
        match int(rng.integers(8)):
            case 0 | 1:
                found[at] ^= 1 << int(rng.integers(8))
            case 2:
                found[at] = int(rng.integers(256))
            case 3:
                found[at : at + 4] = NUMBERS[int(rng.integers(len(NUMBERS)))]
            case 4:
                del found[at : at + length]
            case 5:
                found[at:at] = found[at : at + length]
            case 6:
                found[at : at + length] = rng.bytes(length)
            case 7 if rng.integers(4) == 0:
                del found[at:]
    return bytes(found)


def read_all(folder: Path, first: int, count: int) -> dict[str, object]:
    """Mutates films and reads each as a film and as a trial; what came of it."""
    from viv1t.data.formats.sensorium.trial_video import array_header, read_array
    from viv1t.errors import Viv1tError
    from viv1t.stimuli.film import Movie

    made = films(folder)
    outcomes: Counter[str] = Counter()
    faults, slowest = [], (0.0, "")
    for seed in range(first, first + count):
        source = made[seed % len(made)]
        path = folder / f"mutated{source.suffix}"
        path.write_bytes(mutated(source.read_bytes(), np.random.default_rng(seed)))
        start = time.monotonic()
        for kind in ("film", "trial"):
            try:
                if kind == "film":
                    movie = Movie(path, (9, 16))
                    frames = 0
                    for piece in movie.chunks():
                        assert piece.shape[1:] == (9, 16)
                        assert bool(piece.isfinite().all())
                        frames += len(piece)
                    assert frames == movie.frames
                else:
                    assert read_array(path).shape == array_header(path).shape
                outcomes[f"{kind}: frames"] += 1
            except Exception as error:
                outcomes[f"{kind}: error"] += 1
                if not isinstance(error, Viv1tError) or str(path) not in str(error) or "\n" in str(error):
                    faults.append(f"seed {seed}, {source.name}, as a {kind}: {type(error).__name__}: {error}")
        slowest = max(slowest, (time.monotonic() - start, f"seed {seed}, {source.name}"))
    status = Path("/proc/self/status").read_text()  # `getrusage` counts the parent's memory, too
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]
    return {"outcomes": outcomes, "faults": faults, "slowest": slowest, "peak": peak}


def fuzz(folder: Path, first: int, count: int, timeout: float) -> None:
    command = [sys.executable, __file__, str(folder), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert not found["faults"]
    assert sum(found["outcomes"].values()) == 2 * count
    assert found["outcomes"]["film: frames"]
    assert found["outcomes"]["film: error"] > count / 4  # the faults are faults
    assert found["peak"] < MEMORY
    assert found["slowest"][0] < LONGEST


def test_some_damaged_videos_give_frames_or_one_error(tmp_path: Path) -> None:
    fuzz(tmp_path, 10_000, 54, 240)


@pytest.mark.slow
def test_five_hundred_damaged_videos_give_frames_or_one_error(tmp_path: Path) -> None:
    fuzz(tmp_path, 0, 500, 1800)


if __name__ == "__main__":
    print(json.dumps(read_all(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
