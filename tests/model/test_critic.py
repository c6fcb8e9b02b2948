"""The classifier of mice."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import small_config

from viv1t.errors import ConfigError
from viv1t.families.sensorium2023.options import CriticConfig
from viv1t.model.critic import Critic


def critic(**options: object) -> Critic:
    config = small_config(critic_mode=1, critic_hidden_dim=6, **options).critic
    assert isinstance(config, CriticConfig)
    torch.manual_seed(0)
    return Critic(config.hidden_dim, config.dropout, 8, 3)


def test_learns_to_tell_mice_apart() -> None:
    module = critic(critic_dropout=0.0).train()
    maps, mouse = torch.randn(6, 8, 10, 10, 11), torch.tensor([0, 1, 2, 0, 1, 2])
    maps += 2 * mouse[:, None, None, None, None] * torch.randn(8, 1, 1, 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(module(maps), mouse).backward()
        optimizer.step()
    assert torch.equal(module(maps).argmax(1), mouse)


def test_dropout_acts_in_training_only() -> None:
    module, maps = critic(critic_dropout=0.5), torch.randn(2, 8, 10, 10, 10)
    assert torch.equal(module.eval()(maps), module(maps))
    module.train()
    assert not torch.equal(module(maps), module(maps))


def test_maps_too_small_for_its_convolutions_are_refused() -> None:
    with pytest.raises(ConfigError, match="outputs of 10 x 10 x 10 at least, not 20 x 9 x 10"):
        critic()(torch.randn(1, 8, 20, 9, 10))
