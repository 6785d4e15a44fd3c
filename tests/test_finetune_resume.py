"""A killed run ends as the run that was never killed, to the bit; set HFTL_CRASH_ROUNDS=20 for more kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROUNDS = int(os.environ.get("HFTL_CRASH_ROUNDS", "1"))
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of all runs; they share one start of Python."""
    done = subprocess.run(
        [sys.executable, "-m", "finetune.crash", str(tmp_path_factory.mktemp("crash")), str(ROUNDS)],
        cwd=TESTS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("method", ["full", "lora", "partial"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_run_ends_bitwise_as_the_run_that_was_never_killed(
    crashed: dict[str, Any], method: str, world: int
) -> None:
    runs = crashed["kills"][f"{method}-{world}"]

    assert len(runs) == 2 * ROUNDS + (2 if ROUNDS > 1 else 0)
    for run in runs:
        stopped = -9 if run["signal"] == "SIGKILL" else 130
        assert run["codes"] == [[stopped] * world] * len(run["steps"]) + [[0] * world], run
        assert run["differs"] == [], run


@pytest.mark.parametrize("world", [1, 2, 3])
def test_metrics_count_each_of_1_to_65_rows_once(crashed: dict[str, Any], world: int) -> None:
    assert crashed["metrics"][str(world)] == [[0] * world] + [[]] * world


def test_two_processes_train_what_one_does(crashed: dict[str, Any]) -> None:
    # AdamW divides by the gradient's own size, which magnifies rounding where a gradient is nearly zero.
    assert crashed["worlds"]["worst"] < 5e-4


def test_two_machines_of_one_process_train_what_two_processes_do(crashed: dict[str, Any]) -> None:
    assert crashed["worlds"]["machines"] is True


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_that_fsdp2_spreads_are_saved_resumed_and_exported_whole(crashed: dict[str, Any], method: str) -> None:
    run = crashed["sharded"][method]

    assert [killed["differs"] for killed in run["killed"]] == [[], []]
    assert [killed["codes"] for killed in run["killed"]] == [[[-9, -9], [0, 0]], [[130, 130], [0, 0]]]
    assert run["worst"] < 5e-4


def test_a_spread_model_that_needs_equal_lengths_is_run_equally_often_by_all(crashed: dict[str, Any]) -> None:
    assert crashed["in step"]["codes"] == [0, 0]
    assert crashed["in step"]["worst"] < 1e-4


@pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed")
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", [2, 3])
def test_weights_that_deepspeed_spreads_are_saved_resumed_and_exported_whole(
    crashed: dict[str, Any], method: str, stage: int
) -> None:
    run = crashed["zero"][f"{method}-{stage}"]

    assert [killed["differs"] for killed in run["killed"]] == [[], []]
    assert [killed["codes"] for killed in run["killed"]] == [[[-9, -9], [0, 0]], [[130, 130], [0, 0]]]
    assert run["worst"] < 5e-4


@pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed")
def test_a_run_begun_under_deepspeed_may_end_without_it(crashed: dict[str, Any]) -> None:
    assert crashed["zero"]["moved"]["codes"] == [0]
    assert crashed["zero"]["moved"]["worst"] < 5e-4
