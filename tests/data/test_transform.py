from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from viv1t.data.mice import open_recording
from viv1t.data.session import VARIABLES, Session
from viv1t.data.statistics import MouseStatistics, compute_statistics, provided_statistics, response_precision
from viv1t.data.transform import Affine, Transform
from viv1t.errors import ConfigError, DataError
from viv1t.types import Trial

Make = Callable[..., Path]
SCALED = ("standardize_per_frame", "published", "standardize", "min_max", "balanced")


def opened(path: Path) -> tuple[Session, MouseStatistics]:
    session = open_recording(path)
    return session, compute_statistics(session, session.trials("train"))


def raw(session: Session, trial: int) -> dict[str, np.ndarray]:
    return {variable: session.read(variable, trial) for variable in VARIABLES}


def transformed(session: Session, transform: Transform, trial: int, first: int = 0, frames: int | None = None) -> Trial:
    frames = transform.frames(session.duration(trial)) if frames is None else frames
    return transform.apply(trial, raw(session, trial), first, frames)


def written_out(mode: str, variable: str, x: np.ndarray, s: MouseStatistics) -> np.ndarray:
    """The table of the module's description, in float64."""
    family = s.trial if mode in ("standardize_per_frame", "published") else s.time
    assert family is not None
    m = {name: getattr(family[variable], name).astype(np.float64) for name in ("min", "max", "mean", "std")}
    if mode in ("standardize", "min_max", "balanced"):
        m = {name: value[..., None] for name, value in m.items()}
    else:
        m = {name: value[..., : x.shape[-1]] for name, value in m.items()}
    e = np.finfo(np.float32).eps
    if variable == "response":
        return x * response_precision(s.trial["response"].std)[:, : x.shape[-1]]
    if mode == "published" and variable == "video":
        return (x - m["mean"]) / (m["std"] - m["mean"])
    if mode in ("published", "min_max") or (mode == "balanced" and variable != "video"):
        return (x - m["min"]) / (m["max"] - m["min"])
    return x / m["std"] if variable == "behavior" else (x - m["mean"]) / (m["std"] + e)


@pytest.mark.parametrize("mode", SCALED)
def test_modes_are_as_written(make_session: Make, mode: str) -> None:
    session, statistics = opened(make_session(durations=[20, *[24] * 9]))
    transform = Transform("m", mode, statistics, 1.0, session.frame_size)
    for trial in (0, 1):
        actual = transformed(session, transform, trial)
        assert actual.frames == session.duration(trial)
        for variable, array in raw(session, trial).items():
            wanted = written_out(mode, variable, array[..., : actual.frames].astype(np.float64), statistics)
            found = getattr(actual, variable)
            assert found.dtype == np.float32
            assert found.flags.c_contiguous
            if variable == "video":
                found = found[0].transpose(1, 2, 0)
            np.testing.assert_allclose(found, wanted, rtol=2e-4 if "std" in mode else 1e-5, atol=2e-5)


def test_mode_none_leaves_everything_as_it_is(make_session: Make) -> None:
    session = open_recording(make_session(frames=320, durations=[310] * 10))
    actual = transformed(session, Transform("m", "none", None, 0.5, session.frame_size), 0)
    assert actual.frames == 310
    np.testing.assert_array_equal(actual.video[0], session.read("video", 0)[..., :310].transpose(2, 0, 1))
    np.testing.assert_array_equal(actual.response, session.read("response", 0)[..., :310])


@pytest.mark.parametrize("mode", SCALED)
def test_trials_beyond_300_frames_are_cut(make_session: Make, mode: str) -> None:
    session, statistics = opened(make_session(frames=324, size=(2, 3), neurons=2))
    assert transformed(session, Transform("m", mode, statistics, 1.0, (2, 3)), 0).frames == 300


@pytest.mark.parametrize("mode", SCALED)
@pytest.mark.parametrize("center_crop", [1.0, 0.6])
def test_a_part_equals_the_part_of_the_whole(make_session: Make, mode: str, center_crop: float) -> None:
    session, statistics = opened(make_session())
    transform = Transform("m", mode, statistics, center_crop, session.frame_size)
    whole = transformed(session, transform, 1)
    part = transformed(session, transform, 1, 5, 11)
    assert part.first_frame == 5
    for variable in VARIABLES:
        np.testing.assert_array_equal(getattr(part, variable), getattr(whole, variable)[:, 5:16])


@pytest.mark.parametrize("kind", ["uint8", "int32", "float16", "float64", ">f4"])
@pytest.mark.parametrize("fortran", [False, True])
def test_type_on_disk_does_not_matter(make_session: Make, kind: str, fortran: bool) -> None:
    session, statistics = opened(make_session("reference"))
    other = open_recording(make_session(video_type=kind, fortran=fortran))
    transform = Transform("m", "published", statistics, 0.7, session.frame_size)
    for variable in VARIABLES:
        a, b = (getattr(transformed(s, transform, 2), variable) for s in (session, other))
        np.testing.assert_array_equal(a, b)


def test_recordings_are_not_changed(make_session: Make) -> None:
    session, statistics = opened(make_session())
    arrays = raw(session, 0)
    before = {variable: array.copy() for variable, array in arrays.items()}
    Transform("m", "min_max", statistics, 0.5, session.frame_size).apply(0, arrays, 0, 24)
    for variable in VARIABLES:
        np.testing.assert_array_equal(arrays[variable], before[variable])


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("size", [(36, 64), (7, 9)])
def test_center_crop_is_grid_sample_and_resize(share: float, size: tuple[int, int]) -> None:
    statistics = _flat_statistics(size, frames=4)
    video = np.random.default_rng(0).normal(size=(*size, 4)).astype(np.float32)
    arrays = {"video": video, **{v: np.ones((2, 4), np.float32) for v in VARIABLES[1:]}}
    actual = Transform("m", "standardize", statistics, share, size).apply(0, arrays, 0, 4).video[0]
    plain = Transform("m", "standardize", statistics, 1.0, size).apply(0, arrays, 0, 4).video[0]
    rows, columns = (torch.linspace(-share, share, int(n * share)) for n in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    grid = torch.stack((x, y), -1).expand(4, -1, -1, -1)
    inner = torch.nn.functional.grid_sample(torch.from_numpy(plain)[:, None], grid, mode="nearest", align_corners=True)
    wanted = torch.nn.functional.interpolate(inner, size, mode="bilinear")[:, 0]
    np.testing.assert_array_equal(actual, wanted.numpy())


def _flat_statistics(size: tuple[int, int], frames: int) -> MouseStatistics:
    from viv1t.data.statistics import Moments

    def flat(*shape: int) -> Moments:
        return Moments(*(np.full(shape, value, np.float32) for value in (0, 2, 1, 0.5)))

    states = VARIABLES[1:]
    return MouseStatistics(
        {"video": flat(*size, frames), **{v: flat(2, frames) for v in states}},
        {"video": flat(*size), **{v: flat(2) for v in states}},
    )


def test_center_crop_without_a_pixel() -> None:
    with pytest.raises(ConfigError, match=r"--center_crop 0\.1 leaves no pixel of 6"):
        Transform("m", "standardize", _flat_statistics((6, 64), 4), 0.1, (6, 64))


class TestConstantVariables:
    """A variable that never changes divides by zero in the published code."""

    def change(self, statistics: MouseStatistics, variable: str, where: object) -> MouseStatistics:
        """Statistics as if the variable were the same in every trial at the index `where`."""
        parts = {}
        for family in ("trial", "time"):
            moments = dict(getattr(statistics, family))
            m = moments[variable]
            arrays = {n: getattr(m, n).copy() for n in ("min", "max", "mean", "std")}
            arrays["max"][where] = arrays["mean"][where] = arrays["min"][where]
            arrays["std"][where] = 0
            parts[family] = moments | {variable: replace(m, **arrays)}
        return replace(statistics, **parts)

    @pytest.mark.parametrize(
        ("mode", "variable"),
        [
            ("published", "behavior"), ("min_max", "video"), ("min_max", "pupil_center"), ("standardize", "behavior"),
        ],
    )  # fmt: skip
    def test_some_are_zero_with_a_warning(
        self, make_session: Make, mode: str, variable: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        session, statistics = opened(make_session())
        with caplog.at_level(logging.WARNING, "viv1t"):
            transform = Transform("m", mode, self.change(statistics, variable, 1), 1.0, session.frame_size)
        assert f"mouse m, {variable}" in caplog.text
        actual = getattr(transformed(session, transform, 0), variable)
        assert np.isfinite(actual).all()
        row = actual[0, :, 1] if variable == "video" else actual[1]
        assert not row.any()
        assert actual.any()

    @pytest.mark.parametrize("variable", ["video", "behavior", "pupil_center"])
    def test_all_is_an_error(self, make_session: Make, variable: str) -> None:
        session, statistics = opened(make_session())
        constant = self.change(statistics, variable, ...)
        with pytest.raises(DataError, match=f"mouse m, {variable}: is the same in every trial"):
            Transform("m", "min_max", constant, 1.0, session.frame_size, missing="refuse")

    @pytest.mark.parametrize("variable", ["behavior", "pupil_center"])
    def test_a_state_that_is_constant_is_0(
        self, make_session: Make, caplog: pytest.LogCaptureFixture, variable: str
    ) -> None:
        session, statistics = opened(make_session())
        with caplog.at_level(logging.WARNING, "viv1t"):
            transform = Transform("m", "min_max", self.change(statistics, variable, ...), 1.0, session.frame_size)
        assert f"mouse m, {variable}: is the same in every trial" in caplog.text
        assert not getattr(transformed(session, transform, 0), variable).any()

    def test_movie_of_the_published_mode_divides_by_std_less_mean(
        self, make_session: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        session, statistics = opened(make_session())
        with caplog.at_level(logging.WARNING, "viv1t"):
            video = statistics.trial["video"]
            video.std[2, 3, 4] = video.mean[2, 3, 4]
            transform = Transform("m", "published", statistics, 1.0, session.frame_size)
        assert "1 of 1152" in caplog.text
        assert transformed(session, transform, 0).video[0, 4, 2, 3] == 0

    def test_standardised_movies_need_no_guard(self, make_session: Make, caplog: pytest.LogCaptureFixture) -> None:
        session, statistics = opened(make_session())
        changed = self.change(statistics, "video", ...)
        assert np.isfinite(transformed(session, Transform("m", "standardize", changed, 1.0, (6, 8)), 0).video).all()
        assert not caplog.text

    def test_silent_recording(self, make_session: Make) -> None:
        session, statistics = opened(make_session())
        with pytest.raises(DataError, match="mouse m, response"):
            Transform("m", "published", self.change(statistics, "response", ...), 1.0, session.frame_size)


def test_trials_longer_than_every_training_trial(make_session: Make) -> None:
    durations = [20] * 10
    durations[1] = 24
    session, statistics = opened(make_session(durations=durations))
    with pytest.raises(DataError, match=r"mouse m, trial 1: .*24 frames.* 20 only; use --transform_mode 3 or 4"):
        transformed(session, Transform("m", "published", statistics, 1.0, session.frame_size), 1)
    actual = transformed(session, Transform("m", "min_max", statistics, 1.0, session.frame_size), 1)
    assert actual.frames == 24
    threshold = 0.01 * np.nanmean(statistics.trial["response"].std)
    np.testing.assert_allclose(actual.response[:, 20:], session.read("response", 1)[:, 20:] / threshold, rtol=1e-6)


def test_provided_statistics_per_neuron(make_session: Make) -> None:
    path = make_session()
    session, computed = opened(path)
    for variable, folder in (("video", "videos"), ("response", "responses"), *((v, v) for v in VARIABLES[2:])):
        target = path / "meta" / "statistics" / folder / "all"
        target.mkdir(parents=True)
        family = computed.time if variable == "response" else computed.trial
        assert family is not None
        for name in ("min", "max", "mean", "std"):
            np.save(target / f"{name}.npy", getattr(family[variable], name))
    provided = provided_statistics(session)
    actual = transformed(session, Transform("m", "published", provided, 1.0, session.frame_size), 1)
    assert computed.time is not None
    std = computed.time["response"].std[:, None]
    np.testing.assert_allclose(actual.response, session.read("response", 1) / std, rtol=1e-6)
    with pytest.raises(ConfigError, match="--stat_mode 1"):
        Transform("m", "min_max", provided, 1.0, session.frame_size)


def test_responses_are_scaled_by_each_neurons_own_deviation(make_session: Make) -> None:
    session, statistics = opened(make_session())
    assert statistics.time is not None
    transform = Transform("m", "published", statistics, 1.0, session.frame_size, "neuron")
    trial = session.trials("train")[0]
    raw = session.read("response", trial)
    expected = raw[:, :5] / statistics.time["response"].std[:, None]
    np.testing.assert_allclose(transform.response(trial, raw, 0, 5), expected, rtol=1e-5)


def test_recorded_units_undo_what_is_done_to_responses() -> None:
    """Also an offset, and neurons that never change, of which nothing but their value is known."""
    affine = Affine(np.array([[1.0], [3.0]], np.float32), np.array([[0.5], [0.0]], np.float32))
    transform = Transform.of("M", {"response": affine}, 1, (4, 5))
    found = transform.recorded_units(np.array([[1, 2], [7, 8]], np.float32), 30)
    assert found.dtype == np.float32
    assert found.tolist() == [[3, 5], [3, 3]]
    frames = Affine(np.zeros((1, 4), np.float32), np.array([[1, 2, 4, 8]], np.float32))
    later = Transform.of("M", {"response": frames}, 1, (4, 5)).recorded_units(np.array([[8, 8]], np.float32), 3)
    assert later.tolist() == [[4, 2]]  # of the frames 1 and 2
