"""`evaluation.yaml`: scores, and of which weights they are.

The file is YAML in the published layout, {tier: {mouse: correlation, average: correlation}}, with other scores under
keys of their own. Its first line, a comment, is a checksum of the weights that were scored: scores are added to those
of the same weights, and to no others.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from viv1t.errors import CheckpointError
from viv1t.system.files import write_text
from viv1t.system.safe_yaml import dump_yaml, read_yaml

log = logging.getLogger("viv1t")

_MARK = "# weights "


def weights_checksum(models: Sequence[nn.Module]) -> str:
    """Of a model's weights; of several, whatever their order."""
    return hashlib.blake2b("".join(sorted(map(_checksum, models))).encode(), digest_size=16).hexdigest()


def _checksum(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def earlier_scores(path: Path, checksum: str, *, own: bool = False, named: bool = False) -> dict[str, Any]:
    """The scores in a file that scores of weights with this checksum may be added to; nothing where there is none.

    Args:
        path: of the file.
        checksum: of the weights to be scored.
        own: whether the file lies in the folder of the run that is scored: it is of that run even without a checksum.
        named: whether the user named the file. Scores of other weights are then dropped, with a word, as are those of a
            run's own file, which were of weights that the run no longer has.

    Raises:
        CheckpointError: it is not a mapping, or holds scores of other weights and is nobody's to replace.
    """
    content = read_evaluation(path)
    if not content:
        return {}
    with open(path, encoding="utf-8") as file:
        line = file.readline()
    known = line.removeprefix(_MARK).strip() if line.startswith(_MARK) else None
    if known == checksum or (own and known is None):
        return content
    whose = "of other weights" if known else "and does not tell of which weights"
    if not own and not named:
        raise CheckpointError(f"{path}: holds scores {whose}; delete it, or choose another --output")
    log.warning("%s: held scores (%s) %s; they are replaced", path, ", ".join(content), whose)
    return {}


def write_scores(path: Path, scores: Mapping[str, Any], checksum: str) -> None:
    """Writes the file, atomically."""
    write_text(path, f"{_MARK}{checksum}\n{dump_yaml(dict(scores))}")


def read_evaluation(path: Path) -> dict[str, Any]:
    """The content of an `evaluation.yaml`; nothing where there is none.

    Raises:
        CheckpointError: it is not a mapping.
    """
    if not path.is_file():
        return {}
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as YAML; delete it, or choose another --output") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a mapping of tiers was expected; delete it, or choose another --output")
    return content


def merged(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier evaluation of the same run with newer scores: tiers and mice not scored now keep theirs."""
    result = dict(before)
    for key, value in new.items():
        old = result.get(key)
        result[key] = value
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = merged(old, value)
            if "average" in value:
                by_mouse = [r for m, r in result[key].items() if m != "average"]
                result[key]["average"] = float(np.mean(by_mouse))
    return result
