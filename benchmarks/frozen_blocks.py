"""Partial fine-tuning whose frozen blocks run once, beside the same run in which they run in every epoch.

    python benchmarks/frozen_blocks.py --pictures trashnet --text banking77 --deit deit-tiny-patch16-224
        [--rows 640] [--epochs 3] [--pairs 3] [--threads 2] [--quick]

Each run has a process of its own; the two take turns, and which goes first alternates. A run from the store is made
twice: from an empty store, whose whole time counts, and again. A step's time is the median interval between the ends
of steps from the second epoch on. CPU time is taken in the same way; on a machine that others use too it is what to
look at, with one thread. ``--quick`` makes one pair of the shipped digits, to see that the command works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from machine import tell_machine

CASES = {"pictures": (8, 11), "text": (4, 5), "digits": (3,)}
TARGETS = {("pictures", 8): 1.6, ("pictures", 11): 3.5, ("text", 4): 1.5, ("text", 5): 2.5}
TEST_ROWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", help="a data reference of pictures")
    parser.add_argument("--text", help="a data reference of texts")
    parser.add_argument("--deit", default="facebook/deit-tiny-patch16-224", help="the backbone for pictures")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        case, freeze, cache, store = json.loads(arguments.role)
        print(json.dumps(one_run(arguments, case, freeze, cache, Path(store))))
        return
    cases = ["digits"] if arguments.quick else [case for case in ("pictures", "text") if getattr(arguments, case)]
    for case in cases:
        for freeze in CASES[case]:
            beside(arguments, case, freeze)


def beside(arguments: argparse.Namespace, case: str, freeze: int) -> None:
    """Print the ratios of one case, over pairs of runs."""
    steps, cpu, whole, whole_cpu, last = [], [], [], [], {}
    for pair in range(1 if arguments.quick else arguments.pairs):
        with tempfile.TemporaryDirectory() as store:
            for cache in ("never", "always") if pair % 2 == 0 else ("always", "never"):
                last[cache] = in_a_process(arguments, [case, freeze, cache, store])
            last["again"] = in_a_process(arguments, [case, freeze, "always", store])
        steps.append(last["never"]["step"][0] / last["again"]["step"][0])
        cpu.append(last["never"]["step"][1] / last["again"]["step"][1])
        whole.append(last["always"]["seconds"][0] / last["never"]["seconds"][0])
        whole_cpu.append(last["always"]["seconds"][1] / last["never"]["seconds"][1])
    fresh, again = np.array(last["never"]["losses"]), np.array(last["again"]["losses"])
    target = TARGETS.get((case, freeze))
    print(f"{case}, {freeze} of {last['never']['blocks']} blocks frozen, {len(fresh)} steps")
    print(f"  steps a second      {spread(steps)} x the run without a store{f' (aim {target})' if target else ''}")
    print(f"  by CPU time         {spread(cpu)} x")
    print(
        f"  from an empty store {spread(whole)} x its whole time, {arguments.epochs} epochs; by CPU {spread(whole_cpu)}"
    )
    print(f"  bytes a row         {last['again']['bytes'] / last['again']['stored']:,.0f}")
    first, second = np.array(last["always"]["losses"]), np.abs(fresh - again).max()
    print(f"  losses              {same(second)} without a store; {same(np.abs(first - again).max())} from it twice")
    print(f"  accuracy            {last['never']['accuracy']:.4f} without, {last['again']['accuracy']:.4f} from it")
    sys.stdout.flush()


def spread(ratios: list[float]) -> str:
    return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def same(worst: float) -> str:
    return "equal to the bit" if worst == 0 else f"at most {worst:.1e} apart"


def in_a_process(arguments: argparse.Namespace, role: list[Any]) -> dict[str, Any]:
    threads = {"OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "false", "HFTL_CACHE": role[3]}
    command = [sys.executable, __file__, *sys.argv[1:], "--role", json.dumps(role)]
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def one_run(arguments: argparse.Namespace, case: str, freeze: int, cache: str, store: Path) -> dict[str, Any]:
    """One run: seconds by both clocks of all of it, and of the median step from the second epoch on."""
    from hftl.backbones.blocks import find_depths
    from hftl.backbones.loading import load_backbone
    from hftl.backbones.protocol import Target
    from hftl.data import load_data
    from hftl.finetune.train import finetune
    from hftl.methods import Partial
    from hftl.plugins.registry import find
    from hftl.plugins.spec import BackboneOptions
    from hftl.store.store import FeatureStore

    spec = find({"pictures": arguments.deit, "text": "minilm-l6", "digits": "hftl/glyph-vit-tiny"}[case])
    backbone = load_backbone(spec, BackboneOptions(offline=True))
    ref = {"pictures": arguments.pictures, "text": arguments.text, "digits": "sample:digits"}[case]
    data = load_data(ref, wants=backbone.wants, suffixes=backbone.suffixes)
    draw = np.random.default_rng(0)
    rows = {"train": 96 if arguments.quick else arguments.rows, "test": TEST_ROWS}
    parts = {
        name: split.select(draw.permutation(len(split))[: rows[name]])
        for name, split in (("train", data.train), ("test", data.test))
    }
    data = replace(data, **parts, validation=None)
    target = Target(backbone, backbone.config(data.task, data.label_names))
    method = Partial(freeze=freeze, epochs=arguments.epochs, lr=1e-4, cache_blocks=cache, init="random")
    ends: list[tuple[int, tuple[float, float]]] = []
    losses: list[float] = []

    def log(event: str, **values: Any) -> None:
        if event == "step":
            ends.append((values["epoch"], clocks()))
            losses.append(values["loss"])

    started = np.array(clocks())
    with tempfile.TemporaryDirectory() as folder:
        trained = finetune(method, target, data, start=None, seed=0, folder=Path(folder), origin=spec.origin, log=log)
    seconds = clocks() - started
    pairs = itertools.pairwise(ends)
    later = [np.subtract(end, begin) for (before, begin), (epoch, end) in pairs if before == epoch > 1]
    spaces = FeatureStore(store).spaces()
    return {
        "seconds": seconds.tolist(),
        "step": np.median(later, axis=0).tolist(),
        "losses": losses,
        "bytes": sum(space.bytes for space in spaces),
        "stored": max(sum(space.rows for space in spaces), 1),
        "blocks": find_depths(target.skeleton(), set()).blocks,
        "accuracy": float((trained.logits.argmax(1).numpy() == data.test.labels).mean()),
    }


def clocks() -> tuple[float, float]:
    """Seconds by the wall and by the process's CPU time."""
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    tell_machine()
    main()
