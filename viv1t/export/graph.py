"""What is exported: the model of one mouse, its core or its readout alone, as a module of three or fewer inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from viv1t.export.blocks import GraphParallelBlock, GraphSequentialBlock
from viv1t.export.core import GraphGru, GraphTokenizer, GraphTransformer
from viv1t.export.readout import GraphFactorizedReadout, GraphGaussian2d
from viv1t.model.layers.blocks import ParallelBlock, SequentialBlock
from viv1t.model.layers.tokenizer import Tokenizer
from viv1t.model.layers.transformer import Transformer
from viv1t.model.readout import FactorizedReadout, Gaussian2dReadout
from viv1t.model.twin import ViV1T, module_key

# None of these uses the engine's own operators, which ONNX does not know.
_FORMS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    Tokenizer: GraphTokenizer,
    Transformer: GraphTransformer,
    ParallelBlock: GraphParallelBlock,
    SequentialBlock: GraphSequentialBlock,
    nn.GRU: GraphGru,
    Gaussian2dReadout: GraphGaussian2d,
    FactorizedReadout: GraphFactorizedReadout,
}


def graph_form(model: ViV1T, mouse_id: str) -> ViV1T:
    """A copy of `model` for one mouse, with modules in the form in which they are exported."""
    form = copy.copy(model)
    form._modules = dict(model._modules)
    for parts in ("readouts", "shifters", "modulators", "outputs"):
        own = {key: part for key, part in getattr(model, parts).items() if key == module_key(mouse_id)}
        setattr(form, parts, nn.ModuleDict(own))
    form = copy.deepcopy(form)
    for module in list(form.modules()):
        for name, child in module.named_children():
            if type(child) in _FORMS:
                setattr(module, name, _FORMS[type(child)](child))
    return form


class GraphModel(nn.Module):
    """The mean response of the models of one mouse; of different reaches, the frames that all of them predict."""

    def __init__(self, models: Sequence[ViV1T], mouse_id: str, transform: nn.Module | None = None) -> None:
        super().__init__()
        self.models = nn.ModuleList(graph_form(model, mouse_id) for model in models)
        self.mouse_id, self.transform = mouse_id, transform
        self.reaches = [model.core.fewest_frames for model in models]

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """video (B, 1, T, H, W), behavior (B, 2, T), pupil_center (B, 2, T) -> response (B, N, t)."""
        if self.transform is not None:
            video, behavior, pupil_center = self.transform(video, behavior, pupil_center)
        responses = [model(video, self.mouse_id, behavior, pupil_center) for model in self.models]
        if len(responses) == 1:
            return responses[0]
        longest = max(self.reaches)
        common = [r[..., longest - reach :] for r, reach in zip(responses, self.reaches, strict=True)]
        return torch.stack(common).mean(dim=0)


class GraphCore(nn.Module):
    """The core alone, which all mice share."""

    def __init__(self, model: ViV1T) -> None:
        super().__init__()
        self.mouse_id = model.mouse_ids[0]
        self.model = graph_form(model, self.mouse_id)

    def forward(self, video: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """video (B, 1, T, H, W), behavior (B, 2, T), pupil_center (B, 2, T) -> maps (B, D, t, h, w)."""
        return self.model.core_output(video, self.mouse_id, behavior, pupil_center)


class GraphReadout(nn.Module):
    """Readout, shifter, modulator and output activation of one mouse."""

    def __init__(self, model: ViV1T, mouse_id: str) -> None:
        super().__init__()
        self.model, self.mouse_id = graph_form(model, mouse_id), mouse_id

    def forward(self, maps: Tensor, behavior: Tensor, pupil_center: Tensor) -> Tensor:
        """maps (B, D, t, h, w), behavior (B, 2, T), pupil_center (B, 2, T) -> response (B, N, t)."""
        return self.model.activate(self.model.read_out(maps, self.mouse_id, behavior, pupil_center), self.mouse_id)
