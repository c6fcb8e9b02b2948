"""`viv1t-convert`: a run as a published run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import same_weights, weights

import viv1t
from viv1t.cli.convert import main


def test_writes_what_the_published_code_reads(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), str(tmp_path / "out")]) == 0
    assert capsys.readouterr() == (f"written to {tmp_path / 'out'}\n", "")
    content = torch.load(tmp_path / "out" / "ckpt" / "model_state.pt", weights_only=True)
    assert set(content) == {"epoch", "value", "model"}
    assert "core.vivit.spatial_transformer.blocks.0.attn_out.weight" in content["model"]
    assert same_weights(weights(viv1t.load_model(run)), weights(viv1t.load_model(tmp_path / "out")))


def test_failures_are_one_line_and_write_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "args.yaml").write_bytes((run / "args.yaml").read_bytes())
    for argv, status, words in (
        ([tmp_path / "nowhere", tmp_path / "out"], 1, "is not a run folder"),
        ([tmp_path, tmp_path / "out"], 1, "has no checkpoint"),
        ([run, tmp_path / "full"], 2, "is not an empty folder"),
        ([run, tmp_path / "full" / "mine" / "out"], 1, "mine"),
    ):
        assert main([str(word) for word in argv]) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert words in err
        assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["args.yaml", "full", "mine"]
    with pytest.raises(SystemExit) as exit:
        main([str(run)])
    assert exit.value.code == 2
