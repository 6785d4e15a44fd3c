"""Frozen blocks that run once: whether that pays, and batches read from the store in place of running them.

What the last frozen block returns is a function of the row alone, so training and evaluation can begin there. Pictures
that change from epoch to epoch, and models that are compiled or spread over processes, run all of their blocks; a line
says which it is, and why.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from hftl.ahead import ahead
from hftl.backbones.batching import on_device
from hftl.backbones.cut.blocks import Padding, continued, rows_of_columns
from hftl.backbones.cut.frontier import ReachedError
from hftl.backbones.precision import dtype_name
from hftl.backbones.protocol import Backbone, Encoded, Target
from hftl.data import Data, Split
from hftl.data.augment import Augmentation
from hftl.errors import CutError, HftlError
from hftl.finetune.engine import Engine
from hftl.finetune.rows import HOLD_BYTES, Encoder, encoded_bytes
from hftl.foreign import tree_flatten
from hftl.frozen.augmented import Views, names_of_views
from hftl.frozen.blocks import BlockRows, block_rows, digests_of, further_views
from hftl.frozen.rounding import as_computed, error_in_words, stored_dtype
from hftl.frozen.view import View, open_space
from hftl.methods import FineTune, LoRA, Partial, Storage
from hftl.parallel import broadcast, on_main
from hftl.store.shard import Digests
from hftl.store.space import MissingRowsError, Space
from hftl.store.store import FeatureStore, cache_root
from hftl.store.values import by_row
from hftl.tasks import Task
from hftl.wording import plural

# Rows that are run to learn what the blocks cost.
SAMPLE = 16
# What a disk writes, and what comes back of what was just written, in bytes a second; below what most do.
WRITTEN, READ = 300e6, 1e9
# Cutting the model and proving the cut takes the model once more.
SECONDS_OF_CUT = 3.0
# A store that saves less than this share of the time, or fewer seconds, is not worth its place on the disk.
WORTHWHILE, SECONDS_WORTHWHILE = 0.85, 5.0
SHARE_OF_DISK = 0.5

T = TypeVar("T")
R = TypeVar("R")


class StoredEncoder(Encoder):
    """Rows of one split as the frozen blocks returned them, read from the store.

    Args:
        backbone: the pretrained network.
        split: the rows.
        rows: where they are stored.
        padding: how rows of different lengths become a batch.
    """

    def __init__(self, backbone: Backbone, split: Split, rows: BlockRows, padding: Padding) -> None:
        super().__init__(backbone, split)
        self.space, self.changed_views, self.digests = rows.space, rows.views, rows.digests[split.name]
        self.cut, self.columns = rows.cut, list(rows.cut.kept())
        self.padding = padding

    def __call__(self, rows: Sequence[int]) -> list[Encoded]:
        """What the frozen blocks returned of each row; its cost is not known again."""
        return self._read(self.space, self.digests[list(rows)])

    def views(self, rows: Sequence[int], numbers: Sequence[int], augmentation: Augmentation) -> list[Encoded]:
        """What they returned of views of rows, of each that of one number."""
        assert self.changed_views is not None
        # Number 0 is the row as it is, whose space is another.
        changed = [place for place, number in enumerate(numbers) if number]
        plain = [place for place, number in enumerate(numbers) if not number]
        names = names_of_views(self.digests[[rows[place] for place in changed]], [numbers[place] for place in changed])
        found = dict(zip(changed, self._read(self.changed_views, names), strict=True))
        found |= dict(zip(plain, self([rows[place] for place in plain]), strict=True))
        return [found[place] for place in range(len(rows))]

    def _read(self, space: Space, digests: Digests) -> list[Encoded]:
        if not len(digests):
            return []
        try:
            stored = space.gather(digests, self.columns)
        except MissingRowsError as error:
            raise HftlError(
                f"{error}: what the frozen blocks returned was removed or damaged since the run began; go on with "
                "--resume, which computes it again"
            ) from error
        columns = {name: by_row(value) for name, value in as_computed(stored, self.cut).items()}
        return [Encoded(row) for row in rows_of_columns(columns)]

    def ahead(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Read rows before they are needed: that waits for the disk, not for a processor."""
        return ahead(work, items, workers=2)

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Rows as one batch of columns, padded as the backbone pads."""
        return self.padding.collate([row.inputs for row in rows])


@dataclass(frozen=True)
class Frozen:
    """The first blocks of a model, which a method freezes.

    Attributes:
        count: how many, of ``of``.
        of: all blocks.
        last: the name of the last frozen one.
        random: whether what it returns is random, in training, for one and the same row.
    """

    count: int
    of: int
    last: str
    random: bool


class Stored:
    """A model's frozen blocks, whose outputs are in the store.

    Args:
        model: what is trained.
        backbone: the pretrained network.
        rows: what is stored.
    """

    def __init__(self, model: Any, backbone: Backbone, rows: BlockRows) -> None:
        self.backbone, self.rows = backbone, rows
        self.padding = Padding.of(backbone.probes()[0])
        inside: nn.Module = model.get_base_model() if hasattr(model, "peft_config") else model
        self.continued = continued(model, inside, rows.cut)

    def encoder(self, split: Split) -> Encoder:
        """Reads rows of a split."""
        return StoredEncoder(self.backbone, split, self.rows, self.padding)


def stored_blocks(
    method: FineTune,
    engine: Engine,
    frozen: Frozen,
    target: Target,
    data: Data,
    origin: Mapping[str, str],
    *,
    before: bool | None,
    say: Callable[[str], None],
    quiet: bool,
) -> Stored | None:
    """What the frozen blocks return, in the store where that pays; None where they run in every epoch. Says which.

    Args:
        method: what trains, and how often.
        engine: holds the model, on its device.
        frozen: its frozen blocks.
        target: the pretrained network.
        data: all rows.
        origin: who registered the backbone, and the version of its features.
        before: whether a run that is resumed had them in the store; None for one that begins.
        say: takes a line for a person.
        quiet: show no progress.

    Raises:
        StoreError: the store cannot be written.
    """
    assert isinstance(method, (LoRA, Partial))
    if method.cache_blocks == "never":
        return None
    name = f"blocks    the first {frozen.count} of {frozen.of} run"
    if why := unfit(method, engine.accelerator, target.backbone, frozen, data.task):
        say(f"{name} in every epoch: {why}")
        return None
    view = View(
        precision=method.mixed_precision,
        blocks=frozen.count,
        device=None if method.mixed_precision == "no" else engine.accelerator.device.type,
        storage=method.storage,
    )
    store, views = FeatureStore(cache_root()), views_seen(method)
    if method.cache_blocks == "auto" and before is not None:
        pays, why = before, "as before the stop"
    elif method.cache_blocks == "auto":

        def estimate() -> tuple[bool, str]:
            by_split = digests_of(store, data.splits())
            missing = missing_rows(open_space(store, target.backbone, origin, view), list(by_split.values()))
            if views and len(data.train):
                rows = further_views(data.train, by_split["train"], views)
                changed = replace(view, augmentation=views.augmentation)
                missing += missing_rows(open_space(store, target.backbone, origin, changed), [rows.digests])
            cost = cost_of_row(engine, frozen, Encoder(target.backbone, data.train), method.storage)
            return worthwhile(method, data, missing, cost, free_bytes(store.root))

        pays, why = broadcast(on_main(estimate))
    else:
        pays, why = True, "as asked"
    if not pays:
        say(f"{name} in every epoch: {why}")
        return None
    try:
        rows = block_rows(store, target, origin, view, data.splits(), quiet=quiet, views=views)
    except CutError as error:
        say(f"{name} in every epoch: {str(error).partition('; fine-tune')[0]}")
        return None
    say(f"{name} once: {why}; {plural(rows.computed, 'row')} computed")
    if method.storage != "float32":
        say(f"          {said_of_rounding(rows)}")
    return Stored(engine.model, target.backbone, rows)


def said_of_rounding(rows: BlockRows) -> str:
    """What the storage did to what the blocks return."""
    if rows.is_exact:
        return f"in {rows.storage} on the disk, which rounds nothing: the blocks return no number in 32 bits"
    return (
        f"in {rows.storage} on the disk: a number that they return in 32 bits is rounded "
        f"{error_in_words(rows.rounding, rows.storage)}, so that this training differs from one without a store"
    )


def views_seen(method: FineTune) -> Views | None:
    """The views of training pictures that epochs take turns with; None where there are none, or no end of them."""
    if not isinstance(method, (LoRA, Partial)) or not method.views:
        return None
    return Views(method.views, 1, Augmentation.of(method))


def missing_rows(space: Space, digests: Sequence[Digests]) -> int:
    """How many distinct rows a space has not."""
    return int((~space.known(np.unique(np.concatenate(digests), axis=0))).sum())


def unfit(method: FineTune, accelerator: Accelerator, backbone: Backbone, frozen: Frozen, task: Task) -> str:
    """Why what the blocks return cannot be kept; empty where it can."""
    if task.of_words:
        return "sentences are read in windows, and what the blocks return of those is not stored"
    if Augmentation.of(method) and not views_seen(method):
        return "each epoch changes the pictures anew (flip, crop or trivial_augment; --views 8 takes turns with eight)"
    if method.cutmix or (method.mixup and backbone.wants != "text"):
        return "rows are mixed before them (mixup or cutmix), which is not the same behind them"
    if method.compile:
        return "the model is compiled as one (compile)"
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return f"{accelerator.distributed_type.value} spreads the model over processes"
    if frozen.random:
        return f"something before {frozen.last} is random while the model trains"
    return ""


# ── whether it pays ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RowCost:
    """What one row costs.

    Attributes:
        encoding: seconds of decoding or tokenising.
        running: seconds in the frozen blocks.
        size: bytes of what they return.
        encoded: bytes of the row as it is encoded.
    """

    encoding: float
    running: float
    size: float
    encoded: float


def worthwhile(method: FineTune, data: Data, missing: int, cost: RowCost, free: int) -> tuple[bool, str]:
    """Whether running the blocks once and reading what they return takes less time than running them in every epoch.

    Args:
        method: how often the rows are seen.
        data: the rows.
        missing: distinct rows that are not stored.
        cost: of one.
        free: bytes on the store's disk.

    Returns:
        Whether it does and the disk has room, and the numbers for a person.
    """
    watched, test = method.epochs + 1, 1
    passes = {"train": method.epochs, "validation": watched, "test": test if data.validation else watched + test}
    rows = sum(len(split) for split in data.splits())
    runs = sum(len(split) * passes[split.name] for split in data.splits())
    # Rows are encoded once where they can be held, and do not change.
    encoded = rows if rows * cost.encoded < HOLD_BYTES and not views_seen(method) else runs
    fresh = runs * cost.running + encoded * cost.encoding
    once = missing * (cost.encoding + cost.running + cost.size / WRITTEN) + runs * cost.size / READ
    once += SECONDS_OF_CUT if missing else 0
    needed = missing * cost.size
    what = f"about {once:,.0f} s with the store ({size_of(cost.size)} a row), {fresh:,.0f} s without"
    if needed > SHARE_OF_DISK * free:
        return False, f"{size_of(needed)} are too much for a disk with {size_of(free)} free"
    if once > WORTHWHILE * fresh or fresh - once < SECONDS_WORTHWHILE:
        return False, f"{what}; --cache-blocks always keeps what they return all the same"
    return True, f"{what}; {size_of(needed)} more of {size_of(free)} free"


def cost_of_row(engine: Engine, frozen: Frozen, encoder: Encoder, storage: Storage) -> RowCost:
    """Measure what a row costs on a few of them: encoded, and run as far as the last frozen block."""
    chosen = np.unique(np.linspace(0, len(encoder.split) - 1, SAMPLE).astype(int)).tolist()
    started = time.perf_counter()
    encoded = encoder(chosen)
    encoding = time.perf_counter() - started
    batch = on_device(encoder.collate(encoded), engine.accelerator.device)
    engine.model.eval()
    with engine.accelerator.autocast():
        run_to(engine.model, frozen.last, batch)
        started = time.perf_counter()
        leaves = run_to(engine.model, frozen.last, batch)
        if engine.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
    running = time.perf_counter() - started
    types = [getattr(torch, stored_dtype(dtype_name(leaf.dtype), storage)) for leaf in leaves]
    size = float(sum(leaf.numel() * dtype.itemsize for leaf, dtype in zip(leaves, types, strict=True)))
    mask = batch.get("attention_mask")
    if mask is not None:
        # Padding is not kept, and tokens are kept beside.
        size = size * float(mask.float().mean()) + sum(value.nbytes for value in batch.values())
    count = len(chosen)
    held = sum(encoded_bytes(row) for row in encoded)
    return RowCost(encoding / count, running / count, size / count, held / count)


@torch.no_grad()
def run_to(model: nn.Module, last: str, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Run a model as far as one of its modules; the tensors that this returns."""
    found: list[Tensor] = []

    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        found.extend(leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor))
        raise ReachedError

    handle = model.get_submodule(last).register_forward_hook(stop)
    try:
        with suppress(ReachedError):
            model(**batch)
    finally:
        handle.remove()
    return found


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder, which need not exist."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def size_of(count: float) -> str:
    """Bytes for a person."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
