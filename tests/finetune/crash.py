"""Runs of fine-tuning in forked processes that are killed and resumed; prints what became of them as JSON.

    cd tests && python -m finetune.crash FOLDER ROUNDS

A fork costs milliseconds where a start of Python and its imports costs seconds, so many kills fit into a short test.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

# Brought before pickles are refused, because classes in what they import are derived from Python's picklers; and
# what each fork would import again.
import evaluate  # noqa: F401
import numpy as np
import rich.live
import rich.progress  # noqa: F401
import sklearn.metrics
import sklearn.preprocessing  # noqa: F401
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, patch_environment
from finetune import small
from safetensors.torch import load_file
from torch import nn

import hftl.finetune.loop as loop_module
from hftl.backbones.protocol import Target
from hftl.data import Data
from hftl.errors import HftlError, Interrupted
from hftl.finetune.checkpoint import step_name
from hftl.finetune.evaluate import logits_of
from hftl.finetune.train import finetune
from hftl.methods import Full, LoRA, Partial
from hftl.metrics import evaluate_predictions

METHODS = {"full": Full, "lora": LoRA, "partial": Partial}
SPREAD = ("full", "lora")
# Dropout, accumulation in uneven parts, augmentation, an average; 12 steps of 3 epochs, the last of each with 2 rows.
OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "lr": 3e-3,
    "batch_size": 8,
    "micro_batch": 3,
    "flip": True,
    "crop": 0.5,
    "trivial_augment": True,
    "mixup": 0.2,
    "ema": 0.9,
    "save_every": 2,
    "keep": 50,
    "layer_decay": 0.8,
}
# From the store, which pictures that are not changed allow.
FROM_STORE: dict[str, Any] = {
    "freeze": 1,
    "cache_blocks": "always",
    "flip": False,
    "crop": None,
    "trivial_augment": False,
    "mixup": 0.0,
}
STEPS, ROWS = 12, 26
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
TIMEOUT = 60


# ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def start(world: int, work: Callable[[], None], machines: int = 1) -> list[int]:
    """Fork as many processes that find one another as a launcher's do, on one machine or as if on several."""
    port = free_port()
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if world > 1:
                    os.environ |= {
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank % (world // machines)),
                        "WORLD_SIZE": str(world),
                        "LOCAL_WORLD_SIZE": str(world // machines),
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port),
                    }
                    if "ACCELERATE_USE_DEEPSPEED" not in os.environ:
                        os.environ["ACCELERATE_USE_CPU"] = "true"
                refuse_pickles()
                faulthandler.enable()
                faulthandler.dump_traceback_later(TIMEOUT - 15, exit=False)
                work()
                code = 0
            except Interrupted as stopped:
                code = stopped.exit_code
            except HftlError as error:
                print(error, file=sys.stderr, flush=True)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def refuse_pickles() -> None:
    """Any pickle that is read or written by a file ends the process."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle")

    for module, names in ((pickle, ("load", "dump", "Unpickler", "Pickler")), (torch, ("load", "save"))):
        for name in names:
            setattr(module, name, refuse)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait(children: list[int]) -> list[int]:
    """Exit codes, negative for signals; whoever takes too long is killed."""
    deadline, codes = time.monotonic() + TIMEOUT, {}
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return [codes[child] for child in children]


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def train(folder: Path, method: str, data: Data, model: Path, options: dict[str, Any], resume: bool) -> None:
    """One run; each process writes what each step saw to a file of its own."""
    from hftl.backbones.source import local_source
    from hftl.backbones.vision import ImageBackbone

    torch.set_num_threads(1)
    # A store of its own: what frozen blocks return is computed by each run, and is the same.
    os.environ["HFTL_CACHE"] = str(folder / "store")
    backbone = ImageBackbone(local_source(model))
    seen = (folder / f"seen-{os.environ.get('RANK', '0')}.jsonl").open("a")
    accumulate = loop_module.Loop.accumulate

    def noting(self: Any, step: Any, number: int) -> Any:
        pixels = b"".join(
            next(iter(batch.inputs.values())).numpy().tobytes() + batch.targets.numpy().tobytes()
            for batch in step.micro_batches
        )
        seen.write(json.dumps([number, list(step.rows), hashlib.md5(pixels).hexdigest()]) + "\n")
        seen.flush()
        return accumulate(self, step, number)

    loop_module.Loop.accumulate = noting  # type: ignore[method-assign]
    made = METHODS[method](**options)
    target = Target(backbone, backbone.config(data.task, data.label_names))
    origin = {"name": "crash"}
    trained = finetune(made, target, data, start=None, seed=0, folder=folder, resume=resume, origin=origin)
    if os.environ.get("RANK", "0") == "0":
        trained.export(folder / "model")
        (folder / "logits.json").write_text(json.dumps(trained.logits.tolist()))


class Runs:
    """Runs of one method on so many processes, compared with one that was never killed."""

    def __init__(self, root: Path, model: Path, method: str, world: int, **options: Any) -> None:
        self.root = root / f"{method}-{world}"
        self.model, self.method, self.world = model, method, world
        self.options = OPTIONS | options
        self.data = small.picture_data(ROWS, 7)
        self.whole = self.root / "whole"
        self.once(self.whole)

    def once(self, folder: Path, resume: bool = False) -> list[int]:
        folder.mkdir(parents=True, exist_ok=True)
        return wait(self.start(folder, resume))

    def start(self, folder: Path, resume: bool) -> list[int]:
        return start(self.world, lambda: train(folder, self.method, self.data, self.model, self.options, resume))

    def killed(self, number: signal.Signals, steps: list[int], random_: random.Random) -> dict[str, Any]:
        """A run killed soon after each of the given steps began, resumed each time, and then left to end."""
        folder = self.root / f"{number.name}-{'-'.join(map(str, steps))}"
        codes = [self.interrupted(folder, number, step, i > 0, random_) for i, step in enumerate(steps)]
        codes.append(self.once(folder, resume=True))
        result = {"steps": steps, "signal": number.name, "codes": codes, "differs": self.differences(folder)}
        shutil.rmtree(folder)
        return result

    def interrupted(
        self, folder: Path, number: signal.Signals, step: int, resume: bool, random_: random.Random
    ) -> list[int]:
        """A run that goes on until soon after a step began."""
        folder.mkdir(parents=True, exist_ok=True)
        before = len(lines(folder / "seen-0.jsonl"))
        children = self.start(folder, resume)
        wait_for_step(folder / "seen-0.jsonl", step, before, children)
        time.sleep(random_.random() * 0.03)
        # SIGTERM may reach any one process; all must stop at the same step.
        for child in children if number == signal.SIGKILL else [random_.choice(children)]:
            os.kill(child, number)
        return wait(children)

    def differences(self, folder: Path) -> list[str]:
        """What is not bitwise as in the run that was never killed."""
        last = Path("checkpoints") / step_name(STEPS)
        files = [last / f"{name}.safetensors" for name in ("model", "optimizer")]
        files += [last / "ema.safetensors"] if self.options["ema"] else []
        files += [last / "state.json", Path("model/model.safetensors")]
        files += [Path("adapter/adapter_model.safetensors")] if self.method == "lora" else []
        found = []
        for file in files:
            mine, theirs = folder / file, self.whole / file
            if not mine.exists() or mine.read_bytes() != theirs.read_bytes():
                found.append(str(file))
        if (
            not (folder / "logits.json").exists()
            or (folder / "logits.json").read_text() != (self.whole / "logits.json").read_text()
        ):
            found.append("logits")
        # A step that was computed again must have seen the same again.
        found += [
            f"what process {rank} saw"
            for rank in range(self.world)
            if set(lines(folder / f"seen-{rank}.jsonl")) != set(lines(self.whole / f"seen-{rank}.jsonl"))
        ]
        return found


def lines(path: Path) -> list[str]:
    """Whole lines; a killed process may leave part of one."""
    return [line for line in path.read_text().splitlines() if line.endswith("]")] if path.exists() else []


def wait_for_step(seen: Path, step: int, before: int, children: list[int]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if any(json.loads(line)[0] >= step for line in lines(seen)[before:]):
            return
        if all(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children):
            return
        time.sleep(0.001)


# ── scenarios ────────────────────────────────────────────────────────────────────────────────────────────────────────


def kills(root: Path, model: Path, method: str, world: int, rounds: int) -> list[dict[str, Any]]:
    random_ = random.Random(f"{method}{world}")
    runs = Runs(root, model, method, world, **(FROM_STORE if method == "partial" else {}))
    found = []
    for number in SIGNALS:
        # In the short mode one signal, by turns of the methods, comes three times, and the other once.
        in_turn = number == SIGNALS[(list(METHODS).index(method) + world) % 2]
        if rounds == 1 and in_turn:
            found.append(runs.killed(number, [4, 5, 6], random_) | {"round": "thrice"})
            continue
        steps = random_.sample(range(STEPS - 1), min(rounds, STEPS - 1))
        steps += [random_.randrange(STEPS - 1) for _ in range(rounds - len(steps))]
        for round_, step in enumerate(steps):
            shutil.rmtree(runs.root / f"{number.name}-{step}", ignore_errors=True)
            found.append(runs.killed(number, [step], random_) | {"round": round_})
        # Three times within one epoch, whose steps are 4 … 7.
        if rounds > 1:
            found.append(runs.killed(number, [4, 5, 6], random_) | {"round": "thrice"})
    return found


def apart(one: Path, other: Path) -> float:
    """The largest difference between the exported weights of two runs."""
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def same_result_on_two(root: Path, model: Path) -> dict[str, Any]:
    """Final weights of one process and of two, and of two machines with one process each, without dropout."""
    data = small.picture_data(ROWS, 7)
    options = OPTIONS | {"class_weight": [1.0, 2.0, 0.5], "label_smoothing": 0.1}
    final = {}
    for name, world, machines in (("one", 1, 1), ("two", 2, 1), ("machines", 2, 2)):
        folder = root / "worlds" / name
        folder.mkdir(parents=True)
        work = partial(train, folder, "full", data, model, options, False)
        codes = wait(start(world, work, machines))
        assert codes == [0] * world, codes
        final[name] = load_file(folder / "checkpoints" / step_name(STEPS) / "model.safetensors")
    one, two, machines_ = final["one"], final["two"], final["machines"]
    return {
        "worst": max(float((one[name] - two[name]).abs().max()) for name in one),
        "machines": all(torch.equal(two[name], machines_[name]) for name in two),
    }


def sharded(root: Path, model: Path) -> dict[str, Any]:
    """Runs that spread their weights over two processes by FSDP2, killed and resumed, and beside one process."""
    found = {}
    with fsdp2_on_cpus():
        for method in SPREAD:
            runs = Runs(root / "sharded", model, method, 2)
            found[method] = {"killed": [runs.killed(number, [5], random.Random(0)) for number in SIGNALS]}
    for method in SPREAD:
        found[method]["worst"] = apart(Runs(root / "alone", model, method, 1).whole, root / f"sharded/{method}-2/whole")
    return found


def in_step(root: Path) -> dict[str, Any]:
    """A text model that needs batches of equal length: spread over two processes, and in one."""
    model = small.text_backbone_without_mask(root / "unmasked")
    data = small.uneven_text_data(40, 29)
    logits, codes = {}, {}
    for world in (1, 2):
        folder = root / f"in-step-{world}"
        folder.mkdir(parents=True)
        with fsdp2_on_cpus() if world > 1 else nullcontext():
            codes[world] = wait(start(world, partial(train_texts, folder, data, model)))
        logits[world] = torch.tensor(json.loads((folder / "logits.json").read_text()))
    return {"codes": codes[2], "worst": float((logits[1] - logits[2]).abs().max())}


def train_texts(folder: Path, data: Data, model: Path) -> None:
    """One short run, whose head hardly moves, so that only the logits' order could differ much."""
    from hftl.backbones.source import local_source
    from hftl.backbones.text import TextBackbone

    torch.set_num_threads(1)
    backbone = TextBackbone(local_source(model))
    target = Target(backbone, backbone.config(data.task, data.label_names))
    trained = finetune(Full(epochs=1, lr=1e-6, batch_size=8), target, data, start=None, seed=0, folder=folder)
    if os.environ.get("RANK", "0") == "0":
        (folder / "logits.json").write_text(json.dumps(trained.logits.tolist()))


@contextmanager
def fsdp2_on_cpus() -> Iterator[None]:
    """What ``accelerate launch --use_fsdp --fsdp_version 2`` sets, and what accelerate says on GPUs only: FSDP."""
    init = Accelerator.__init__

    def sharding(self: Accelerator, **options: Any) -> None:
        init(self, **options)
        self.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin()

    asked = patch_environment(
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_CPU_RAM_EFFICIENT_LOADING="true",
    )
    with asked, mock.patch.object(Accelerator, "__init__", sharding):
        yield


def zero(root: Path, model: Path) -> dict[str, Any]:
    """Runs under DeepSpeed on two processes, killed and resumed, and beside one process without it."""
    found = {}
    for method, stage in (("full", 2), ("full", 3), ("lora", 2), ("lora", 3)):
        alone = Runs(root / f"beside-{stage}", model, method, 1, ema=None)
        with deepspeed_on_cpus(stage):
            runs = Runs(root / f"zero-{stage}", model, method, 2, ema=None)
            killed = [runs.killed(number, [5], random.Random(0)) for number in SIGNALS]
        found[f"{method}-{stage}"] = {"killed": killed, "worst": apart(alone.whole, runs.whole)}
    # Begun under DeepSpeed on two processes, ended without it on one.
    moved = root / "moved"
    with deepspeed_on_cpus(3):
        runs.interrupted(moved, signal.SIGTERM, 5, False, random.Random(0))
    found["moved"] = {"codes": alone.once(moved, resume=True), "worst": apart(alone.whole, moved)}
    return found


@contextmanager
def deepspeed_on_cpus(stage: int) -> Iterator[None]:
    """What ``accelerate launch --use_deepspeed`` sets; and gloo, which accelerate does not choose on CPUs by itself."""
    prepare = PartialState._prepare_backend

    def with_gloo(self: PartialState, cpu: bool = False, sagemaker_dp: bool = False, backend: str | None = None) -> Any:
        return prepare(self, cpu, sagemaker_dp, backend or "gloo")

    asked = patch_environment(
        ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE=stage, DS_ACCELERATOR="cpu"
    )
    with asked, mock.patch.object(PartialState, "_prepare_backend", with_gloo):
        # Once, and before pickles are refused: what DeepSpeed imports from torch derives classes from pickle's.
        import_module("deepspeed")
        import_module("torch._inductor.codecache")
        yield


class Passing(nn.Module):
    """Logits are what the row holds; a row of the wrong number would show."""

    def forward(self, values: torch.Tensor) -> Any:
        return type("Output", (), {"logits": values})


class Numbers:
    """An encoder of rows whose logits are known."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits
        self.split = type("Split", (), {"inputs": range(len(logits)), "labels": logits.argmax(1)})
        self.backbone = self

    def ahead(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(work, items)

    def collated(self, rows: list[int]) -> list[tuple[list[int], dict[str, torch.Tensor]]]:
        # Every other row first, as where rows of one length run together.
        groups = [list(range(start, len(rows), 2)) for start in range(min(2, len(rows)))]
        return [(group, {"values": torch.from_numpy(self.logits[[rows[i] for i in group]])}) for group in groups]


def metrics(folder: Path) -> None:
    """For N = 1 … 65 the metrics from all processes, beside those of the whole."""
    accelerator = Accelerator(cpu=True)
    wrong = []
    for rows in range(1, 66):
        random_ = np.random.default_rng(rows)
        logits = random_.normal(size=(rows, 3)).astype(np.float32)
        labels = np.concatenate([[0, 1, 2], random_.integers(0, 3, rows)])[-rows:]
        gathered = logits_of(accelerator, Passing(), Numbers(logits), 4).numpy()  # type: ignore[arg-type]
        names = ["a", "b", "c"]
        alone = evaluate_predictions("single_label", logits, labels, names)
        if (
            not np.array_equal(gathered, logits)
            or evaluate_predictions("single_label", gathered, labels, names) != alone
        ):
            wrong.append(rows)
    (folder / f"metrics-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(wrong))


def exact_metrics(root: Path, world: int) -> list[Any]:
    folder = root / f"metrics-{world}"
    folder.mkdir(parents=True)
    codes = wait(start(world, lambda: metrics(folder)))
    return [codes, *(json.loads((folder / f"metrics-{rank}.json").read_text()) for rank in range(world))]


def main(root: Path, rounds: int) -> None:
    torch.set_num_threads(1)
    with_dropout, without = root / "with-dropout", root / "without"
    small.image_backbone(with_dropout, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    small.image_backbone(without, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    # Forks then do not look through what was imported, which would copy its pages.
    gc.freeze()
    found: dict[str, Any] = {"kills": {}, "metrics": {}}
    for method in METHODS:
        for world in (1, 2):
            found["kills"][f"{method}-{world}"] = kills(root, with_dropout, method, world, rounds)
    for world in (1, 2, 3):
        found["metrics"][str(world)] = exact_metrics(root, world)
    found["sharded"] = sharded(root, without)
    found["in step"] = in_step(root)
    found["zero"] = zero(root, without) if find_spec("deepspeed") else None
    found["worlds"] = same_result_on_two(root, without)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
