"""The rows of each step, and how they become tensors: a function of (seed, epoch, row) and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hftl.backbones.batching import WordBatch, batch_groups
from hftl.backbones.protocol import Backbone, Encoded
from hftl.data import Data, Split
from hftl.data.augment import Augmentation
from hftl.decoding import decoder_of
from hftl.errors import BadRowError
from hftl.finetune.losses import Loss
from hftl.finetune.mixing import CHANGES, PARTNER, Mixing, mixed, stream
from hftl.frozen.augmented import view_of_picture
from hftl.parallel import Process
from hftl.store.digests import digest_bytes

# Encoding costs more than memory until there is none; 1 GiB is some 1,700 pictures of 224 pixels, or all texts.
HOLD_BYTES = 1 << 30
# Batches that are made at a time; of the finished ones twice as many wait where threads are few, and else as many.
THREADS = 16

T = TypeVar("T")
R = TypeVar("R")

# Rows of a batch, by position, and the inputs of one forward.
Group: TypeAlias = "tuple[list[int], dict[str, Tensor]]"


@dataclass(frozen=True)
class Batch:
    """What one forward sees.

    Attributes:
        inputs: keyword arguments of the model.
        targets: (n,) int64 class numbers, or (n, C) float32; of sentences those of all words.
        counted: (n,) float32: 1 for a row (or word), 0 for a copy that only fills the batch up.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    counted: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from where it is copied to a GPU while that computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs: dict[str, Tensor] = {name: change(value) for name, value in self.inputs.items()}
        if isinstance(self.inputs, WordBatch):
            inputs = self.inputs.moved(change)
        return Batch(inputs, change(self.targets), change(self.counted))


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        rows: all rows of the step, of all processes.
        weight: what the sum of their losses is divided by.
        micro_batches: this process's share; every process has the same number.
    """

    rows: Sequence[int]
    weight: float
    micro_batches: list[Batch]


class Encoder:
    """Encodes rows of one split; rows that do not change are kept encoded while they fit ``HOLD_BYTES``."""

    def __init__(self, backbone: Backbone, split: Split, *, equal_lengths: bool = False) -> None:
        self.backbone = backbone
        self.split = split
        self.equal_lengths = equal_lengths
        self.decoder = decoder_of(backbone)
        self._held: dict[int, Encoded] = {}
        self._bytes = 0

    def __call__(self, rows: Sequence[int]) -> list[Encoded]:
        """Rows as the backbone's own preprocessing gives them."""
        missing = [row for row in dict.fromkeys(rows) if row not in self._held]
        inputs = self.split.inputs
        made = self.decoder([inputs[row] for row in missing], [inputs.name(row) for row in missing])
        new = dict(zip(missing, made, strict=True))
        for row, encoded in new.items():
            if self._bytes < HOLD_BYTES:
                self._bytes += encoded_bytes(encoded)
                self._held[row] = encoded
        return [new[row] if row in new else self._held[row] for row in rows]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Encoded rows as one batch."""
        return self.backbone.collate(rows)

    def collated(self, rows: Sequence[int]) -> list[Group]:
        """Rows as the model is to run them: in one padded batch, or where padding would change them in several."""
        encoded = self(rows)
        groups = batch_groups(encoded, equal_lengths=self.equal_lengths)
        return [(group, self.collate([encoded[i] for i in group])) for group in groups]

    def views(self, rows: Sequence[int], numbers: Sequence[int], augmentation: Augmentation) -> list[Encoded]:
        """Views of rows, of each that of one number; see `hftl.frozen.augmented.view_of_picture`."""
        contents: list[Any] = [self.split.inputs[row] for row in rows]
        names = [self.split.inputs.name(row) for row in rows]
        changes = [
            partial(view_of_picture, name=name, digest=digest_bytes(content), number=number, augmentation=augmentation)
            for content, name, number in zip(contents, names, numbers, strict=True)
        ]
        return self.decoder(contents, names, changes)

    def changed(
        self, rows: Sequence[int], augmentation: Augmentation, randoms: Sequence[np.random.Generator]
    ) -> list[Encoded]:
        """Rows, each augmented by random numbers of its own before preprocessing."""
        names = [self.split.inputs.name(row) for row in rows]
        changes = [partial(augmentation, name=name, random=random) for name, random in zip(names, randoms, strict=True)]
        return self.decoder([self.split.inputs[row] for row in rows], names, changes)

    def ahead(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Do work that encodes rows before its results are needed, see `hftl.ahead.ahead`."""
        threads = min(self.decoder.threads, THREADS)
        return self.decoder.ahead(work, items, threads, max(1, min(2, THREADS // threads)))


def without_bad_rows(backbone: Backbone, data: Data) -> tuple[Data, list[BadRowError]]:
    """The data without the rows that cannot be decoded, and why each of those cannot; decodes all of them once."""
    bad: list[BadRowError] = []

    def readable(split: Split) -> Split:
        decoder = decoder_of(backbone)

        def problem(row: int) -> BadRowError | None:
            try:
                decoder([split.inputs[row]], [split.inputs.name(row)])
            except BadRowError as error:
                return error
            return None

        problems = list(decoder.ahead(problem, range(len(split)), decoder.threads))
        bad.extend(error for error in problems if error)
        good = np.array([row for row, error in enumerate(problems) if not error], dtype=np.int64)
        return split.select(good)

    validation, outside = (split and readable(split) for split in (data.validation, data.outside))
    train, test = readable(data.train), readable(data.test)
    return replace(data, train=train, validation=validation, test=test, outside=outside), bad


class TrainRows:
    """The training rows in the order of their steps.

    Args:
        encoder: of the training split.
        loss: says what targets weigh.
        process: this process among those that share each step.
        seed: of order, augmentation and mixing.
        batch_size: rows of one step, over all processes.
        micro_batch: most rows of one forward.
        augmentation: of each row.
        mixing: of pairs of rows.
        views: of each row, of which an epoch sees one; None where it is changed anew in every epoch.
    """

    def __init__(
        self,
        encoder: Encoder,
        loss: Loss,
        process: Process,
        *,
        seed: int,
        batch_size: int,
        micro_batch: int,
        augmentation: Augmentation | None = None,
        mixing: Mixing | None = None,
        views: int | None = None,
    ) -> None:
        self.encoder = encoder
        self.loss = loss
        self.seed = seed
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.rank = process.rank
        self.world = process.world
        # In page-locked memory a batch is copied to a GPU while that computes.
        self.pin_memory = process.device.type == "cuda"
        self.augmentation = augmentation or Augmentation()
        self.mixing = mixing or Mixing()
        self.views = views
        self.labels = encoder.split.labels

    def __len__(self) -> int:
        return len(self.encoder.split)

    @property
    def steps(self) -> int:
        """Steps of one epoch; the last may have fewer rows."""
        return math.ceil(len(self) / self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """All rows in the order in which an epoch sees them."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """The steps of an epoch from the ``start``-th on, encoded ahead by other threads or processes."""
        order = self.order(epoch)
        steps = [order[i : i + self.batch_size].tolist() for i in range(0, len(self), self.batch_size)][start:]
        shares = [(rows, share) for rows in steps for share in self.shares(rows)]
        batches = self.encoder.ahead(lambda item: self.batch(epoch, *item[1]), shares)
        for rows in steps:
            micro_batches = [next(batches) for _ in self.shares(rows)]
            yield Step(rows, self.loss.weight(self.targets(epoch, rows)), micro_batches)

    def shares(self, rows: Sequence[int]) -> list[tuple[list[int], int]]:
        """This process's micro-batches of a step: rows, and how many of them count.

        All processes have equally many micro-batches of equal size: one that has a row less repeats a row that does not
        count. The micro-batches of a process are of even size, so that none is left with a single row.
        """
        mine = list(rows[self.rank :: self.world])
        size = math.ceil(len(rows) / self.world)
        count = math.ceil(size / self.micro_batch)
        filled = mine + [rows[0]] * (size - len(mine))
        shares = []
        start = 0
        for i in range(count):
            stop = start + size // count + (i < size % count)
            shares.append((filled[start:stop], min(max(len(mine) - start, 0), stop - start)))
            start = stop
        return shares

    def targets(self, epoch: int, rows: Sequence[int]) -> Tensor:
        """Targets of rows in an epoch: labels, or a mixture of two rows' labels."""
        labels = torch.from_numpy(self.loss.task.by_line(self.labels[list(rows)]))
        if not self.mixing:
            return labels
        mixes = [self.mixing.draw(self.seed, epoch, row, len(self)) for row in rows]
        share = torch.tensor([mix.share for mix in mixes], dtype=torch.float32)[:, None]
        mine, theirs = self._soft(labels), self._soft(torch.from_numpy(self.labels[[mix.partner for mix in mixes]]))
        return share * mine + (1 - share) * theirs

    def _soft(self, labels: Tensor) -> Tensor:
        return F.one_hot(labels, self.loss.num_labels).float() if labels.dim() == 1 else labels

    def batch(self, epoch: int, rows: list[int], counted: int | None = None) -> Batch:
        """Rows as one forward sees them in an epoch; the first ``counted`` count, or all."""
        encoded = self._encode(epoch, rows, CHANGES)
        if self.mixing:
            mixes = [self.mixing.draw(self.seed, epoch, row, len(self)) for row in rows]
            partners = self._encode(epoch, [mix.partner for mix in mixes], PARTNER, rows)
            encoded = [mixed(*three) for three in zip(encoded, partners, mixes, strict=True)]
        counts = (torch.arange(len(rows)) < (len(rows) if counted is None else counted)).float()
        # Of a sentence every word counts, or none.
        counts = counts.repeat_interleave(torch.tensor([row.lines for row in encoded]))
        batch = Batch(self.encoder.collate(encoded), self.targets(epoch, rows), counts)
        return batch.pin_memory() if self.pin_memory else batch

    def _encode(self, epoch: int, rows: Sequence[int], purpose: int, of: Sequence[int] | None = None) -> list[Encoded]:
        if not self.augmentation:
            return self.encoder(rows)
        if self.views:
            draws = [stream(self.seed, epoch, of_row, purpose) for of_row in of or rows]
            return self.encoder.views(rows, [int(draw.integers(self.views)) for draw in draws], self.augmentation)
        randoms = [stream(self.seed, epoch, of_row, purpose) for of_row in of or rows]
        return self.encoder.changed(rows, self.augmentation, randoms)


def encoded_bytes(encoded: Encoded) -> int:
    """The memory that an encoded row takes."""
    return sum(_value_bytes(value) for value in encoded.inputs.values())


def _value_bytes(value: Any) -> int:
    return int(value.nbytes) if isinstance(value, Tensor) else 8 * len(value)
