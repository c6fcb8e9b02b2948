"""The Python interface: arrays in any form people have, as recorded or transformed, taken or refused in a sentence."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_videos import moving_pattern, write_video

import viv1t
from viv1t.data.mice import open_recording
from viv1t.errors import ConfigError
from viv1t.model.twin import ViV1T
from viv1t.prediction.predictor import Predictor
from viv1t.types import SENSORIUM_SESSIONS

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
SIZE = (36, 64)


@pytest.fixture
def model(run: Path) -> ViV1T:
    return viv1t.load_model(run)


@pytest.fixture
def predictor(run: Path) -> Predictor:
    return Predictor(run, mouse_ids="F")


def arrays(trials: int = 1, frames: int = 40) -> Arrays:
    rng = np.random.default_rng(0)
    return rng.normal(size=(trials, 1, frames, *SIZE)), rng.random((trials, 2, frames)), rng.random((trials, 2, frames))


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda a: a,
    "float16 of what it holds": lambda a: a.astype(np.float16).astype(np.float64),
    "tensors": torch.tensor,
    "lists": lambda a: a.tolist(),
    "not contiguous": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 0)), 0, -1),
    "no trials": lambda a: a[0],
    "frames alone": lambda a: a[0, 0] if a.ndim == 5 else a[0],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_model_takes_arrays_in_any_form(form: str, model: ViV1T) -> None:
    given = arrays()
    if form.startswith("float16"):
        given = tuple(a.astype(np.float16).astype(np.float64) for a in given)  # type: ignore[assignment]
    tensors = [torch.tensor(a, dtype=torch.float32) for a in given]
    with torch.no_grad():
        expected = model(tensors[0], "F", *tensors[1:])
        v, b, p = (FORMS[form](a) for a in given)
        found = model(v, mouse_id="F", behavior=b, pupil_center=p)
        assert torch.equal(model(v, SENSORIUM_SESSIONS["F"], b, p), found)
    assert expected.shape == (1, 6, 36)
    assert torch.equal(found, expected)


def test_a_state_serves_all_movies_and_gradients_reach_the_movie(model: ViV1T) -> None:
    v, b, p = arrays(2)
    video = torch.tensor(v, requires_grad=True)
    response = model(video, "F", b[:1], p[0])
    assert response.shape == (2, 6, 36)
    with torch.no_grad():
        assert torch.equal(response, model(v, "F", b[[0, 0]], p[[0, 0]]))
    response.sum().backward()
    assert video.grad is not None
    assert video.grad.abs().sum() > 0


WRONG: dict[str, tuple[Callable[[Arrays], tuple[Any, ...]], str]] = {
    "grey levels": (lambda a: (a[0].astype(np.uint8), *a[1:]), "video must be transformed.*Predictor takes movies as"),
    "shorter behavior": (lambda a: (a[0], a[1][..., :30], a[2]), r"behavior must be \(2, 40\) or \(1, 2, 40\)"),
    "longer gaze": (lambda a: (*a[:2], a[2].repeat(2, -1)), r"pupil_center must be \(2, 40\).*not \(1, 2, 80\)"),
    "time before states": (lambda a: (a[0], a[1][0].T, a[2]), r"behavior must be .*not \(40, 2\)"),
    "other numbers of trials": (lambda a: (a[0].repeat(3, 0), a[1].repeat(2, 0), a[2]), "behavior .* 3 movies"),
    "time last": (lambda a: (np.moveaxis(a[0][0, 0], 0, -1), *a[1:]), "last in recordings: np.moveaxis"),
    "two channels": (lambda a: (a[0].repeat(2, 1), *a[1:]), r"video must be \(T, 36, 64\)"),
    "a frame": (lambda a: (a[0][0, 0, 0], *a[1:]), r"video must be \(T, 36, 64\)"),
    "nothing": (lambda a: (a[0][:, :, :0], *a[1:]), "video has no frames"),
    "words": (lambda a: (a[0], "fast", a[2]), "behavior must be an array of numbers"),
    "ragged": (lambda a: (a[0], [[1, 2], [3]], a[2]), "behavior must be an array of numbers"),
    "complex": (lambda a: (a[0] + 1j, *a[1:]), "video must be an array of numbers, not of complex128"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_model_refuses_what_does_not_fit_and_names_the_argument(case: str, model: ViV1T) -> None:
    change, reason = WRONG[case]
    with pytest.raises(ConfigError, match=reason):
        model(change(arrays())[0], "F", *change(arrays())[1:])


def test_grey_levels_in_floating_point_are_told(model: ViV1T, caplog: pytest.LogCaptureFixture) -> None:
    v, b, p = arrays()
    with caplog.at_level(logging.WARNING, "viv1t"), torch.no_grad():
        model(v, "F", b, p)
        assert not caplog.records
        model(np.abs(v) * 100, "F", b, p)
        model(np.abs(v) * 100, "F", b, p)
    assert [r.getMessage().split(" from")[0] for r in caplog.records] == ["video has values"]  # once


def test_a_predictor_takes_values_as_recorded(
    run: Path,
    mice: Path,
    predictor: Predictor,
    model: ViV1T,
) -> None:
    session = open_recording(mice / SENSORIUM_SESSIONS["F"])
    trial = session.trials("validation")[0]
    frames = session.duration(trial)
    raw = {v: session.read(v, trial)[..., :frames] for v in ("video", "behavior", "pupil_center")}
    video, behavior, pupil_center = np.moveaxis(raw["video"], -1, 0), raw["behavior"], raw["pupil_center"]
    found = predictor.predict(video, behavior, pupil_center)
    (batch,) = (b for b in recordings_of(run).trials("F", "validation") if b.trial_ids == (trial,))
    with torch.no_grad():
        expected = model(batch.video, "F", batch.behavior, batch.pupil_center).numpy()
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)
    for form in FORMS.values():
        given = [a.astype(np.float64) for a in (video[None, None], behavior[None], pupil_center[None])]
        assert np.allclose(predictor.predict(*(form(a) for a in given), mouse_id="F"), expected, rtol=0.02, atol=0.02)
    whole = np.round(video).astype(np.uint8)
    both = predictor.predict(np.stack([whole, whole])[:, None], behavior, pupil_center)
    assert both.shape == (2, *found.shape[1:])
    medians = {name: predictor.subjects["F"].median(name) for name in ("behavior", "pupil_center")}
    assert np.array_equal(predictor.predict(whole), predictor.predict(whole, *medians.values()))
    recorded = Predictor(run, mouse_ids=["F"], units="recorded").predict(video, behavior, pupil_center)
    scale = recordings_of(run).response_precision("F", frames)[:, -found.shape[2] :]
    assert np.allclose(recorded * scale, found, rtol=1e-4)


def recordings_of(folder: Path) -> Any:
    from viv1t.data.recordings import Recordings
    from viv1t.runs.folder import RunFolder

    return Recordings.open(RunFolder(folder).config().data, 1)


@pytest.mark.parametrize("case", [name for name in WRONG if name != "grey levels"])
def test_a_predictor_refuses_what_does_not_fit(case: str, predictor: Predictor) -> None:
    change, reason = WRONG[case]
    v, *states = arrays()
    v, *states = change((np.clip(v * 50 + 120, 0, 255), *states))  # type: ignore[assignment,arg-type]
    with pytest.raises(ConfigError, match=reason):
        predictor.predict(v, *states)


def test_a_predictor_refuses_other_units_of_grey(predictor: Predictor) -> None:
    v, b, p = arrays()
    grey = np.clip(v * 0.2 + 0.5, 0, 1)
    with pytest.raises(ConfigError, match="recordings' lie between 0 and 255: multiply by 255"):
        predictor.predict(grey, b, p)
    assert predictor.predict(grey * 0, b, p).shape == (1, 6, 36)  # black is black in any range
    v[0, 0, 3, 4, 5] = np.nan
    with pytest.raises(ConfigError, match="video holds NaN or infinity"):
        predictor.predict(v * 100, b, p)


def test_mice_are_named(run: Path) -> None:
    predictor = Predictor(run)
    assert predictor.mouse_ids == ["F", "G"]
    film = np.zeros((40, *SIZE), np.uint8)
    for mouse, reason in ((None, "say which mouse with mouse_id; it has F, G"), ("A", "'A' is not in this model")):
        with pytest.raises(ConfigError, match=reason):
            predictor.predict(film, mouse_id=mouse)
    found = predictor.predict(film, mouse_id=SENSORIUM_SESSIONS["G"])
    assert np.array_equal(found, predictor.predict(film, mouse_id="G"))
    for options, reason in (({"units": "spikes"}, "units must be"), ({"mouse_ids": ["A"]}, "A: not in every run")):
        with pytest.raises(ConfigError, match=reason):
            Predictor(run, **options)  # type: ignore[arg-type]


def test_films_and_long_movies(predictor: Predictor, tmp_path: Path) -> None:
    luma = moving_pattern(110, *SIZE)
    film = predictor.predict_film(write_video(tmp_path / "film.webm", luma))
    assert film.shape == (6, 110)
    assert np.isnan(film[:, :4]).all()
    assert np.allclose(predictor.predict(luma)[0], film[:, 4:], atol=1e-4)  # 110 frames are two windows here


def test_names_are_there_when_asked_for() -> None:
    program = (
        "import sys, viv1t; assert 'torch' not in sys.modules; viv1t.OnnxModel; assert 'torch' not in sys.modules; "
        "viv1t.Predictor; assert 'torch' in sys.modules; import viv1t.errors"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Predicter'"):
        _ = viv1t.Predicter
