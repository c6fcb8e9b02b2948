"""What enters the core beside the film: the statistics and the states at which a mouse is examined."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np

from viv1t.data.transform import Affine, Transform
from viv1t.prediction.subject import Subject


def seen_as(subject: Subject, other: Subject) -> Subject:
    """A mouse that sees films and behaves as another one, and responds as itself."""
    if other is subject:
        return subject
    transform = copy(other.transform)
    own = {name: affine for name, affine in subject.transform.affine.items() if name == "response"}
    transform.mouse_id, transform.floor = subject.transform.mouse_id, subject.transform.floor
    transform.affine = {n: a for n, a in other.transform.affine.items() if n != "response"} | own
    return replace(subject, transform=transform, median=other.median, levels=other.levels)


def mean_statistics(subject: Subject) -> Subject:
    """A mouse whose statistics of each frame are replaced by their means over the frames; responses keep theirs."""
    transform: Transform = copy(subject.transform)
    transform.affine = {
        name: affine if name == "response" else _mean(affine) for name, affine in subject.transform.affine.items()
    }
    return replace(subject, transform=transform)


def _mean(affine: Affine) -> Affine:
    """The mean of what is subtracted, and of what is divided by, over frames."""
    if affine.frames is None:
        return affine
    known = affine.scale != 0
    with np.errstate(divide="ignore"):
        divisor = np.where(known, 1 / affine.scale.astype(np.float64), 0).sum(-1, keepdims=True)
    count = known.sum(-1, keepdims=True)
    scale = np.where(count > 0, count / np.where(divisor != 0, divisor, np.inf), 0)
    offset = affine.offset.mean(-1, keepdims=True, dtype=np.float64)
    return Affine(np.ascontiguousarray(offset, np.float32), np.ascontiguousarray(scale, np.float32))
