"""From a batch of one mouse to its loss: what an optimizer step differentiates, and what validation predicts with.

Compiled, it is one graph for all mice: a mouse's modules are arguments, and the number of neurons is a symbol. Nothing
in it waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viv1t.errors import DataError, TrainingError
from viv1t.model.critic import Critic
from viv1t.model.twin import MouseModules, ViV1T, module_key, read_out
from viv1t.scoring.criterion import TrainingLoss, unscaled_criterion
from viv1t.types import MAX_FRAMES, Batch


def backward(loss: Tensor) -> None:
    """Adds the gradients of a loss, if anything is trained."""
    if loss.requires_grad:  # the random readout leaves nothing to train
        loss.backward()  # type: ignore[no-untyped-call]


def by_length(batch: Batch) -> list[Batch]:
    """The batch's trials in batches of one length each, ascending, without padding or what lies past 300 frames.

    Padding would reach the predictions through attention over frames and through batch norm.
    """
    frames = [min(n, MAX_FRAMES) for n in batch.frames.tolist()]
    parts = []
    for length in sorted(set(frames)):
        rows = [i for i, n in enumerate(frames) if n == length]

        def pick(x: Tensor, rows: list[int] = rows) -> Tensor:
            # Not gathered by an index, for which a GPU would be waited for.
            return x if len(rows) == len(x) else torch.stack([x[i] for i in rows])

        parts.append(
            Batch(
                mouse_id=batch.mouse_id,
                trial_ids=tuple(batch.trial_ids[i] for i in rows),
                video=pick(batch.video[:, :, :length]),
                response=pick(batch.response[..., :length]),
                behavior=pick(batch.behavior[..., :length]),
                pupil_center=pick(batch.pupil_center[..., :length]),
                frames=torch.full((len(rows),), length),
                first_frames=tuple(batch.first_frames[i] for i in rows) if batch.first_frames else (),
            )
        )
    return parts


def _joined(series: list[Tensor]) -> Tensor:
    """Series (B, N, t) of any t as one, shorter ones followed by zeros."""
    longest = max(s.shape[2] for s in series)
    return torch.cat([F.pad(s, (0, longest - s.shape[2])) for s in series]) if len(series) > 1 else series[0]


class _Given(NamedTuple):
    """What a mouse's batches are run with, besides the core."""

    model: ViV1T
    modules: MouseModules
    critic: Critic | None
    mouse: Tensor | None  # (B,) the critic's answer


def _respond(given: _Given, maps: Tensor, behavior: Tensor, pupil_center: Tensor) -> tuple[Tensor, Tensor | None]:
    """Predicted responses (B, t, N) from the core's maps; the sum over trials of the critic's loss, if there is one."""
    # As the readout writes them: the gradient of a compiled result whose sizes are symbols comes back contiguous.
    prediction = given.modules.output(read_out(given.modules, maps, behavior, pupil_center)).transpose(1, 2)
    if given.critic is None or given.mouse is None:
        return prediction, None
    return prediction, F.cross_entropy(given.critic(maps.detach()), given.mouse, reduction="sum")


def _predict(
    given: _Given, video: Tensor, behavior: Tensor, pupil_center: Tensor, key: str
) -> tuple[Tensor, Tensor | None]:
    """As `_respond`, from the video; `key` is the mouse's `module_key`."""
    maps = given.model.run_core(video, behavior, pupil_center, key)
    return _respond(given, maps, behavior, pupil_center)


# A parameter's size is no reason to compile again. A core with an encoder per mouse, and the random readout, are
# compiled for each mouse.
_COMPILER: dict[str, Any] = {
    "force_parameter_static_shapes": False, "force_nn_module_property_static_shapes": False,
    "allow_rnn": True, "recompile_limit": 64,
}  # fmt: skip


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo  # long to import

    # Without CUDA graphs, which save launches: by estimate, kernels of a full-size batch take much longer than theirs,
    # and every mouse would need a graph with memory of its own. Not yet measured on a GPU.
    whole = torch.compile(function, fullgraph=True)

    def run(*args: Any) -> Any:
        with torch._dynamo.config.patch(_COMPILER):
            try:
                return whole(*args)
            except torch._dynamo.exc.BackendCompilerFailed as error:
                reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"the model cannot be compiled here ({reason}): train with --no_compile")

    return run


def _mark_neurons(module: nn.Module | None, count: int) -> None:
    """Tells the compiler which sizes of parameters and buffers differ between mice: those that are N."""
    for tensor in () if module is None else (*module.parameters(), *module.buffers()):
        for dim, size in enumerate(tensor.shape):
            if size == count:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)


class Objective:
    """Losses and predictions of one mouse's batches.

    Args:
        model: in training mode for losses.
        loss: the criterion, and what it is multiplied by.
        critic: trained beside the model, which it leaves alone.
        compiled: as two graphs without a break, predictions and criterion.
    """

    def __init__(
        self,
        model: ViV1T,
        loss: TrainingLoss,
        critic: Critic | None = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.loss, self.critic, self.compiled = model, loss, critic, compiled
        self.maps: Callable[[Batch], Tensor] | None = None  # a frozen core's are known
        functions: list[Callable[..., Any]] = [_respond, _predict, unscaled_criterion]
        if compiled:
            functions = [_compiled(function) for function in functions]
            for mouse_id, count in model.neurons.items():
                for module in model.modules_of(mouse_id):
                    _mark_neurons(module, count)
        self._respond, self._predict, self._criterion = functions

    def predict(self, models: Sequence[ViV1T], batch: Batch) -> Tensor:
        """Predicted responses (B, N, t) of trials of one length, on the model's device; for `validate`."""
        (part,) = by_length(batch.to(next(self.model.parameters()).device))
        return self._run(part, None)[0]

    def losses(self, batch: Batch, batch_size: int) -> tuple[Tensor, Tensor | None]:
        """The loss of a (micro) batch, part of a whole batch of `batch_size` trials, and the critic's.

        Raises:
            DataError: a trial is too short for the core.
        """
        parts = by_length(batch)
        self._check_lengths(parts[0])
        predictions, of_critic = zip(*(self._run(part, self.critic) for part in parts), strict=True)
        prediction = _joined(list(predictions))
        response = _joined([part.response for part in parts]).contiguous()  # one graph, wherever it comes from
        mask = None
        if len(parts) > 1:
            frame = torch.arange(response.shape[2], device=response.device)[-prediction.shape[2] :]
            mask = torch.cat([(frame < part.video.shape[2]).expand(len(part), -1) for part in parts])
        if self.compiled:
            # Of one trial with neurons inside of time, Inductor of PyTorch 2.11 to 2.13 writes a wrong gradient.
            prediction = prediction.contiguous()
            for tensor in (prediction, response):
                torch._dynamo.maybe_mark_dynamic(tensor, 1)
        loss = self._criterion(self.loss.criterion, response, prediction, batch_size, mask)
        loss = loss * self.loss.weight(batch.mouse_id, batch_size)  # out of the graph: every mouse has its own number
        return loss, None if self.critic is None else torch.stack(of_critic).sum() / batch_size

    def _run(self, part: Batch, critic: Critic | None) -> tuple[Tensor, Tensor | None]:
        mouse_id, device = part.mouse_id, part.video.device
        self.model.check_input(part.video, mouse_id)
        mouse = None
        if critic is not None:
            mouse = torch.full((len(part),), self.model.mouse_ids.index(mouse_id), device=device)
        given = _Given(self.model, self.model.modules_of(mouse_id), critic, mouse)
        if self.maps is not None:
            found = self._respond(given, self.maps(part), part.behavior, part.pupil_center)
        else:
            found = self._predict(given, part.video, part.behavior, part.pupil_center, module_key(mouse_id))
        return found[0].transpose(1, 2), found[1]

    def _check_lengths(self, shortest: Batch) -> None:
        frames = shortest.video.shape[2]
        if self.model.core.output_frames(frames) < 1:
            raise DataError(
                f"mouse {shortest.mouse_id}, trial {', '.join(map(str, shortest.trial_ids))}: {frames} frames are "
                "fewer than the core's temporal extent, so that nothing would be predicted; set the trial's tier to "
                "'none'"
            )
