"""What of an experiment's table is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from viv1t.lab.experiments import context, contrast, rf, size
from viv1t.lab.gratings import Grid
from viv1t.lab.observers import Observer
from viv1t.lab.present import Shown
from viv1t.lab.tuning import VonMises, aligned
from viv1t.plot import lab as plot
from viv1t.stimuli.parametric import CONTEXTS

if TYPE_CHECKING:
    import pandas as pd


def draw(name: str, table: pd.DataFrame, observer: Observer, shown: Shown, responses: np.ndarray, out: Path) -> None:
    """Draws an experiment of one mouse; those without a picture draw nothing."""
    if name in _DRAWN and len(table):
        _DRAWN[name](table, observer, shown, responses, out)


def _title(what: str, observer: Observer) -> str:
    return f"{what}, mouse {observer.mouse.id}"


def _names(table: pd.DataFrame, chosen: np.ndarray) -> list[str]:
    return [f"neuron {table['neuron'].iloc[i]}" for i in chosen]


def _rf(table: pd.DataFrame, observer: Observer, shown: Shown, responses: np.ndarray, out: Path) -> None:
    chosen = plot.spread(table["r2"].to_numpy())
    neurons = table["neuron"].to_numpy()
    maps = rf.maps(shown, responses[neurons[chosen]], observer.frame_size)[2]
    columns = {n: table[n].to_numpy() for n in ("x", "y", "sigma_x", "sigma_y", "theta", "good", "r2")}
    names = [
        f"{name}, R² {columns['r2'][i]:.2f}{'' if columns['good'][i] else ' (not good)'}"
        for name, i in zip(_names(table, chosen), chosen, strict=True)
    ]
    fits = {n: columns[n][chosen] for n in ("x", "y", "sigma_x", "sigma_y", "theta")}
    plot.fields(
        maps, fits, names, columns, out, coordinates=observer.mouse.coordinates[neurons],
        title=_title("Receptive fields by dots", observer),
    )  # fmt: skip


def _direction(table: pd.DataFrame, observer: Observer, shown: Shown, responses: np.ndarray, out: Path) -> None:
    grid: Grid = shown.about
    chosen, fine = plot.spread(table["gOSI"].to_numpy()), np.arange(0, 361, 3.0)
    curves = np.stack(table["tuning_curve"].to_list())
    fitted = np.full((len(chosen), len(fine)), np.nan)
    for row, i in enumerate(chosen):
        fit = table.iloc[i]
        if not np.isnan(fit["fit_mu"]):
            # Scale and bias are linear: they follow from the curve.
            shape = VonMises(np.radians(fit["fit_mu"]), fit["fit_kappa"], fit["fit_phi"], 1.0, 0.0, 0.0, fit["fit_r2"])
            terms = np.stack([shape(grid.angles), np.ones(len(grid.angles))], axis=1)
            scale, bias = np.linalg.lstsq(terms, curves[i], rcond=None)[0]
            fitted[row] = scale * shape(fine) + bias
    columns = {n: table[n].to_numpy() for n in ("gOSI", "gDSI", "preferred_direction")}
    names = [f"{name}\ngOSI {columns['gOSI'][i]:.2f}" for name, i in zip(_names(table, chosen), chosen, strict=True)]
    plot.directions(
        curves[chosen], grid.angles, fitted, fine, names, columns, aligned(np.maximum(curves, 0)), out,
        title=_title("Direction tuning at each neuron's best frequencies", observer),
    )  # fmt: skip


def _frequency(table: pd.DataFrame, observer: Observer, shown: Shown, responses: np.ndarray, out: Path) -> None:
    grid: Grid = shown.about
    if len(grid.frequencies) < 2:
        return
    curves = np.stack(table["frequency_curve"].to_list())
    chosen = plot.spread(curves.max(axis=1))
    histograms = {
        "cycles a pixel": table["frequency_fit"].to_numpy(), "Hz": table["hertz"].to_numpy(),
        "F1/F0": table["f1_f0"].to_numpy(),
    }  # fmt: skip
    plot.curves(
        np.asarray(grid.frequencies),
        {"": curves[chosen]},
        _names(table, chosen),
        histograms,
        out,
        label="cycles a pixel",
        logarithmic=True,
        population=curves,
        title=_title("Spatial frequency", observer),
    )


def _contrast(table: pd.DataFrame, observer: Observer, shown: Shown, responses: np.ndarray, out: Path) -> None:
    curves = np.stack(table["curve"].to_list())
    chosen = plot.spread(curves.max(axis=1))
    histograms = {"c50": table["c50"].to_numpy(), "exponent": table["exponent"].to_numpy()}
    plot.curves(
        np.array([0.0, *contrast.CONTRASTS]),
        {"": curves[chosen]},
        _names(table, chosen),
        histograms,
        out,
        label="contrast",
        population=curves,
        title=_title("Contrast", observer),
    )


def _size(table: pd.DataFrame, observer: Observer, shown: Shown, responses: np.ndarray, out: Path) -> None:
    curves, inverse = (np.stack(table[name].to_list()) for name in ("curve", "curve_inverse"))
    chosen = plot.spread(curves.max(axis=1))
    histograms = {"preferred (°)": table["preferred"].to_numpy(), "suppression index": table["si"].to_numpy()}
    plot.curves(
        size.SIZES,
        {"in a circle": curves[chosen], "around it": inverse[chosen]},
        _names(table, chosen),
        histograms,
        out,
        label="size (°)",
        population=curves,
        title=_title("Size", observer),
    )


def _context(table: pd.DataFrame, observer: Observer, shown: Shown, responses: np.ndarray, out: Path) -> None:
    curves = {kind: np.stack(table[f"curve_{kind}"].to_list()) for kind in CONTEXTS}
    chosen = plot.spread(curves["center"].max(axis=1))
    histograms = {
        "index at 20°": table["cmi"].to_numpy(), "index at the preferred size": table["cmi_preferred"].to_numpy()
    }  # fmt: skip
    plot.curves(
        context.SIZES,
        {kind: values[chosen] for kind, values in curves.items()},
        _names(table, chosen),
        histograms,
        out,
        label="size (°)",
        population=curves["center"],
        title=_title("Context", observer),
    )


_DRAWN = {
    "rf": _rf,
    "direction": _direction,
    "frequency": _frequency,
    "contrast": _contrast,
    "size": _size,
    "context": _context,
}
