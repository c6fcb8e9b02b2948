"""Random numbers of the operators: published values, the same bits from kernel and definition, statistics."""

from __future__ import annotations

import pytest
import torch
from viv1t.kernels.common.dropout import keep_rows, new_seed
from viv1t.kernels.common.philox_reference import keep_mask, philox

ONES = 2**32 - 1


# Test vectors of the authors' library Random123, philox4x32 with 7 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        ((ONES,) * 4, (ONES, ONES), (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        ),
    ],
)
def test_philox_has_the_published_values(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    seed = (key[1] << 32 | key[0]) - (2**64 if key[1] >> 31 else 0)
    assert tuple(philox(torch.tensor([seed]), *counter).tolist()) == words


@pytest.mark.parametrize("columns", [8, 16, 64])
@pytest.mark.parametrize("seed", [0, 2**62 + 12345, -3])
def test_kernel_and_definition_agree_bit_for_bit(kernel_device: torch.device, seed: int, columns: int) -> None:
    from keep_kernel import keep_kernel

    key = torch.tensor([seed], device=kernel_device)
    out = torch.empty(16, columns, dtype=torch.bool, device=kernel_device)
    keep_kernel[(1,)](key, out, 7, 24, round(0.358 * 65536), 16, columns)
    assert torch.equal(out, keep_mask(key, 23, 24 + columns, 0.358, stream=3)[7:, 24:])


@pytest.mark.parametrize("rate", [0.0592, 0.358, 0.5, 0.9])
@pytest.mark.parametrize("draw", ["philox", "cpu"])
def test_masks_keep_the_right_share_everywhere(draw: str, rate: float) -> None:
    rows, columns = 500, 403
    generator = torch.Generator().manual_seed(1)
    keep = (
        keep_mask(torch.tensor([1]), rows, columns, rate)
        if draw == "philox"
        else keep_rows(rows, columns, rate, generator)
    ).double()
    spread = (rate * (1 - rate)) ** 0.5
    assert abs(keep.mean() - (1 - rate)) < 6 * spread / keep.numel() ** 0.5
    for dim, count in ((0, rows), (1, columns)):
        assert (keep.mean(dim) - (1 - rate)).abs().max() < 6 * spread / count**0.5
    centred = (keep - (1 - rate)) / spread
    for rows_apart, columns_apart in ((0, 1), (0, 2), (0, 4), (0, 8), (1, 0), (1, 1), (2, 0)):
        a = centred[rows_apart:, columns_apart:]
        b = centred[: rows - rows_apart, : columns - columns_apart]
        assert abs((a * b).mean()) < 6 / a.numel() ** 0.5


@pytest.mark.parametrize(("rate", "kept"), [(0.0, True), (1.0, False)])
def test_rates_0_and_1_are_exact(rate: float, kept: bool) -> None:
    for mask in (keep_mask(torch.tensor([5]), 99, 17, rate), keep_rows(99, 17, rate)):
        assert bool((mask == kept).all())


def test_seeds_and_streams_differ() -> None:
    masks = [keep_mask(torch.tensor([seed]), 64, 64, 0.5, stream) for seed in (1, 2, 2**32 + 1) for stream in (0, 1)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs((a == b).double().mean() - 0.5) < 6 * 0.5 / 64


def test_cpu_masks_do_not_depend_on_how_many_rows_are_drawn_at_a_time() -> None:
    whole = keep_rows(10, 37, 0.4, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    parts = torch.cat([keep_rows(n, 37, 0.4, generator) for n in (1, 4, 5)])
    assert torch.equal(whole, parts)


def test_new_seeds_follow_the_generator() -> None:
    def seeds() -> list[int]:
        torch.manual_seed(0)
        return [int(new_seed(torch.device("cpu"))) for _ in range(4)]

    assert seeds() == seeds()
    assert len(set(seeds())) == 4
