"""Runs that need the same rows at once: one computes them, and nobody waits for the dead, the stopped or the odd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny

import hftl
from hftl.parallel import Process
from hftl.store import turns
from hftl.store.files import host_tag, process_mark
from hftl.store.space import Space
from hftl.store.store import FeatureStore
from hftl.store.turns import turn


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "claims" / ("0" * 32)


def enter(claim: Path) -> tuple[float, list[str]]:
    """How long it takes to get a turn, and whom it waits for."""
    waited: list[str] = []
    started = time.monotonic()
    with turn(claim, 0o700, waited.append):
        pass
    return time.monotonic() - started, waited


def test_one_works_at_a_time_and_the_claim_goes_with_the_turn(claim: Path):
    inside, most, names = 0, 0, []

    def work() -> None:
        nonlocal inside, most
        with turn(claim, 0o700, names.append):
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert set(names) == {f"process {os.getpid()}"}
    assert list(claim.parent.iterdir()) == []


def test_a_turn_that_fails_is_given_back(claim: Path):
    with pytest.raises(KeyError), turn(claim, 0o700, lambda name: None):
        raise KeyError
    assert not claim.exists()


def test_nobody_waits_for_the_dead(claim: Path):
    script = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom hftl.store.turns import turn\n"
        "with turn(Path(sys.argv[1]), 0o700, print): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(claim)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert claim.exists()
    seconds, waited = enter(claim)
    assert waited == []
    assert seconds < 5


@pytest.mark.parametrize("host", ["ffffffff", "here"])
def test_nobody_waits_long_for_who_gives_no_sign(claim: Path, host: str):
    claim.parent.mkdir(parents=True)
    claim.write_text(f"{host_tag() if host == 'here' else host}-{os.getpid()}-00000000")
    old = time.time() - turns.SILENT_SECONDS - 1
    os.utime(claim, (old, old))
    assert enter(claim)[1] == []


def test_who_works_gives_signs(claim: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "SIGN_SECONDS", 0.01)
    with turn(claim, 0o700, lambda name: None):
        os.utime(claim, (1, 1))
        until = time.monotonic() + 20
        while claim.stat().st_mtime == 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert time.time() - claim.stat().st_mtime < 60


def test_a_process_of_another_machine_is_waited_for_by_name(claim: Path):
    claim.parent.mkdir(parents=True)
    claim.write_text("ffffffff-77-00000000")
    waited: list[str] = []

    def give_back(name: str) -> None:
        waited.append(name)
        claim.unlink()

    with turn(claim, 0o700, give_back):
        assert claim.exists()
    assert waited == ["process 77 of another machine"]


def test_a_claim_that_another_took_over_is_left_to_it(claim: Path):
    with turn(claim, 0o700, lambda name: None):
        claim.write_text(other := process_mark())
    assert claim.read_text() == other


@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "empty", "garbage", "no folder"])
def test_odd_claims_stop_nobody(claim: Path, kind: str):
    claim.parent.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(claim)
    elif kind == "folder":
        (claim / "in").mkdir(parents=True)
    elif kind == "loop":
        claim.symlink_to(claim)
    elif kind == "no folder":
        claim.parent.rmdir()
        claim.parent.write_text("")
    else:
        claim.write_bytes(b"" if kind == "empty" else b"\xff" * 5000)
    seconds, waited = enter(claim)
    assert waited == []
    assert seconds < 5


def test_other_rows_and_other_spaces_have_turns_of_their_own(tmp_path: Path):
    store = FeatureStore(tmp_path / "cache")
    one, other = (store.space({"model": name}, name) for name in "ab")
    rows = np.arange(64, dtype=np.uint8).reshape(4, 16)
    names: list[str] = []
    with (
        store.turn([one], rows, names.append),
        store.turn([other], rows, names.append),
        store.turn([one], rows[1:], names.append),
        store.turn([one, other], rows, names.append),
    ):
        assert len(list((tmp_path / "cache" / "claims").iterdir())) == 4
    assert names == []


def test_runs_that_start_together_compute_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HFTL_PLUGINS", "")
    recipe = hftl.Recipe(
        backbone=str(tiny.save("vit", tmp_path / "backbone")), data=str(runs.write_images(tmp_path / "data"))
    )
    real, computed = Space.commit, []

    def count(self: Space, digests: np.ndarray, *rest: object) -> None:
        time.sleep(0.2)  # the others have started by then
        computed.append(len(digests))
        real(self, digests, *rest)

    monkeypatch.setattr(Space, "commit", count)
    Process.current()  # accelerate's own start is not for several threads
    with ThreadPoolExecutor(3) as pool:
        matrices = list(pool.map(lambda _: hftl.features(recipe, quiet=True), range(3)))
    assert sum(computed) == 18
    assert all(np.array_equal(matrix.matrix, matrices[0].matrix) for matrix in matrices)
