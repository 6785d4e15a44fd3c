"""A checkpoint is whole or not used, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hftl.errors import UserError
from hftl.finetune.checkpoint import prune, read_newest, step_name, write_checkpoint

FILE_CALLS = ["manifest.json", "state.json", "model.safetensors", "optimizer.safetensors"]


def save(folder: Path, step: int) -> Path:
    tensors = {
        "model": {"weight": torch.full((3, 4), float(step)), "count": torch.tensor(step)},
        "optimizer": {"exp_avg:weight": torch.full((3, 4), 0.5), "step:weight": torch.tensor(float(step))},
    }
    return write_checkpoint(folder, step_name(step), {"step": step, "made_with": {"lr": 0.1}}, tensors)


def missing(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save(tmp_path, 3)

    checkpoint, problems = read_newest(tmp_path)

    assert checkpoint is not None
    assert (checkpoint.step, problems) == (3, [])
    assert checkpoint.state["made_with"] == {"lr": 0.1}
    assert torch.equal(checkpoint.tensors["model"]["weight"], torch.full((3, 4), 3.0))
    assert checkpoint.tensors["model"]["count"].dtype == torch.int64
    assert set(checkpoint.tensors["optimizer"]) == {"exp_avg:weight", "step:weight"}


@pytest.mark.parametrize("file", FILE_CALLS)
@pytest.mark.parametrize("damage", [missing, cut, emptied, zeroed])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one_and_says_so(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path, 2)
    damage(save(tmp_path, 4) / file)

    checkpoint, problems = read_newest(tmp_path)

    assert checkpoint is not None
    assert checkpoint.step == 2
    assert len(problems) == 1
    assert "step-00000004 is damaged" in problems[0]


@pytest.mark.parametrize("file", FILE_CALLS)
def test_no_flipped_bit_goes_unseen(tmp_path: Path, file: str) -> None:
    save(tmp_path, 2)
    path = save(tmp_path, 4) / file
    content = path.read_bytes()
    for position in range(0, len(content), max(len(content) // 150, 1)):
        for bit in (0, 4, 6):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(bytes(flipped))
            checkpoint, problems = read_newest(tmp_path)
            assert checkpoint is not None
            assert (checkpoint.step, len(problems)) == (2, 1), (position, bit)


def test_without_any_whole_checkpoint_a_resume_stops(tmp_path: Path) -> None:
    for step in (2, 4):
        cut(save(tmp_path, step) / "model.safetensors")

    with pytest.raises(UserError, match=r"no whole checkpoint.*step-00000004.*step-00000002"):
        read_newest(tmp_path)


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert read_newest(tmp_path / "nowhere") == (None, [])


def test_a_write_cut_short_is_not_seen_and_is_cleared_away(tmp_path: Path) -> None:
    save(tmp_path, 2)
    half = tmp_path / ".step-00000004.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")

    checkpoint, problems = read_newest(tmp_path)
    prune(tmp_path, keep=5)

    assert checkpoint is not None
    assert (checkpoint.step, problems) == (2, [])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 3):
        save(tmp_path, step)

    prune(tmp_path, keep=2)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000020"]


def test_a_step_reached_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    cut(save(tmp_path, 4) / "state.json")

    path = save(tmp_path, 4)

    checkpoint, problems = read_newest(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, problems) == (4, [])
    assert json.loads((path / "manifest.json").read_text())["format"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]
