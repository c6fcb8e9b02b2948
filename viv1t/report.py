"""The pictures of a trained model, for `--save_plots`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from viv1t.data.recordings import Recordings
from viv1t.model.cores.vivit import Vivit
from viv1t.model.readout import Gaussian2dReadout
from viv1t.model.twin import ViV1T, module_key
from viv1t.plot.attention import attention_film_strip
from viv1t.plot.positions import readout_positions
from viv1t.plot.responses import correlation_by_neuron, response_traces
from viv1t.prediction.attention_rollout import attention_rollout, can_roll_out
from viv1t.scoring.correlation import CorrelationAccumulator
from viv1t.training.validate import scored_trials

_TRACES = 6  # neurons whose responses are drawn, of each mouse


def positions_on_frame(model: ViV1T, recordings: Recordings, mouse_id: str) -> np.ndarray:
    """(N, 2) where neurons of a readout gaussian2d look: x and y in [-1, 1] on the frame, at validation's mean gaze."""
    key = module_key(mouse_id)
    readout = model.readouts[key]
    assert isinstance(readout, Gaussian2dReadout)
    with torch.no_grad():
        positions = readout.positions()
        if key in model.shifters:
            shifts = []
            for batch in recordings.trials(mouse_id, "validation"):
                state = torch.cat((batch.behavior, batch.pupil_center), dim=1).to(positions.device)
                shifts.append(model.shifters[key](state).mean(dim=(0, 1)))
            positions = positions + torch.stack(shifts).mean(0)
        return model.core.frame_positions(positions).cpu().numpy()


def chosen_neurons(correlations: np.ndarray, count: int = _TRACES) -> list[int]:
    """Neurons from the best predicted to the median one, evenly spread."""
    ranked = np.argsort(-correlations, kind="stable")
    places = np.linspace(0, (len(ranked) - 1) / 2, min(count, len(ranked))).round().astype(int)
    return [int(n) for n in ranked[np.unique(places)]]


def draw_model(
    model: ViV1T, recordings: Recordings, folder: Path, *, format: str = "svg", dpi: int = 120
) -> Sequence[Path]:
    """Draws what a model does on the tier `validation`; returns the figures' paths.

    `responses_<mouse>`: recorded and predicted traces of one trial; `correlation`: over neurons and over the cortex;
    `readout_positions`: where neurons look on the frame (readout gaussian2d); `attention_<mouse>`: attention rollout
    over one movie (core vivit of 2023).

    Args:
        model: in evaluation mode.
        recordings: it was made for.
        folder: of the figures, made when missing.
        format: pdf, svg or png.
        dpi: resolution in dots per inch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    correlations = {}
    for mouse_id in recordings.mice:
        accumulator = CorrelationAccumulator()
        first = None
        for trial in scored_trials([model], recordings, mouse_id, "validation"):
            first = first or trial
            accumulator.update(*trial[1:])
        assert first is not None  # training needs the tier
        correlations[mouse_id] = accumulator.result().numpy()
        trial_id, prediction, response = first
        drawn.append(
            response_traces(
                response.numpy(), prediction.numpy(), folder / f"responses_{mouse_id}.{format}",
                neurons=chosen_neurons(correlations[mouse_id]), correlations=correlations[mouse_id],
                first_frame=recordings.frames(mouse_id, trial_id) - response.shape[1],
                title=f"mouse {mouse_id}, trial {trial_id} of the tier validation; r of all its trials",
                dpi=dpi, format=format,
            )
        )  # fmt: skip
    coordinates = {m: mouse.coordinates for m, mouse in recordings.mice.items()}
    drawn.append(
        correlation_by_neuron(correlations, coordinates, folder / f"correlation.{format}", dpi=dpi, format=format)
    )
    if all(isinstance(readout, Gaussian2dReadout) for readout in model.readouts.values()):
        drawn.append(
            readout_positions(
                {m: positions_on_frame(model, recordings, m) for m in recordings.mice}, coordinates,
                folder / f"readout_positions.{format}", frame_size=model.frame_size, dpi=dpi, format=format,
            )
        )  # fmt: skip
    if isinstance(model.core, Vivit) and can_roll_out(model.core):
        mouse_id = next(iter(recordings.mice))
        with closing(recordings.trials(mouse_id, "validation")) as batches:
            batch = next(batches)
        rollout = attention_rollout(model, batch.video, batch.behavior, batch.pupil_center, mouse_id)
        drawn.append(
            attention_film_strip(
                recordings.movie(mouse_id, batch.trial_ids[0]), rollout.pixels, rollout.temporal,
                folder / f"attention_{mouse_id}.{format}", frames=rollout.frames,
                title=f"mouse {mouse_id}, trial {batch.trial_ids[0]}: attention rollout", dpi=dpi, format=format,
            )
        )  # fmt: skip
    return drawn
