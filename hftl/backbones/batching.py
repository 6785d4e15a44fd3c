"""Batches whose rows get what the model gives for each of them alone.

In most models a mask keeps padding out of a row's numbers. In some it does not (a convolution or a Fourier transform
over tokens, landmarks that are counted from the padded length), so that a row's numbers depend on what else is in its
batch. Such models are run on rows of equal length, which need no padding: slower, and exact. Which kind a model is of
is measured, not looked up: `needs_equal_lengths` compares every row of mixed batches with the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hftl.backbones.precision import in_float32
from hftl.backbones.protocol import Encoded
from hftl.errors import CutError
from hftl.wording import one_line

# Far above what another order of summation changes in float32, far below what padding does.
TOLERANCE = 1e-4
# Differences of numbers below this one are measured against it.
SMALLEST = 1e-2

Inputs = Mapping[str, Tensor]


class Probe(dict[str, Tensor]):
    """A batch that knows its rows without padding, for models whose batches hold no mask to tell it by.

    Args:
        batch: keyword arguments of the forward, first dimension n.
        rows: the same n rows, each as a batch of one without padding.
    """

    def __init__(self, batch: Inputs, rows: Sequence[Inputs]) -> None:
        super().__init__(batch)
        self.rows = [dict(row) for row in rows]


class WordBatch(dict[str, Tensor]):
    """A batch of sentences that knows where each word is read.

    A sentence that is longer than the model reads stands in several rows, its windows.

    Args:
        batch: keyword arguments of the forward, first dimension the windows.
        spans: of each window the first and the last (exclusive) position that is no padding.
        words: (words, 2) int64: of each word, sentence after sentence, the window and the position of its first token.
        lengths: words of each sentence.
    """

    def __init__(self, batch: Inputs, spans: Sequence[tuple[int, int]], words: Tensor, lengths: Sequence[int]) -> None:
        super().__init__(batch)
        self.spans, self.words, self.lengths = list(spans), words, list(lengths)

    def of_words(self, values: Tensor) -> Tensor:
        """What stands at each word's first token, (words, …), of values (windows, tokens, …)."""
        at = self.words.to(values.device)
        return values[at[:, 0], at[:, 1]]

    def of_rows(self, values: Tensor) -> list[Tensor]:
        """The same for each sentence, (words of it, …) each."""
        return list(torch.split(self.of_words(values), self.lengths))

    @property
    def rows(self) -> list[WordBatch]:
        """Each window alone, without padding, with the words that are read in it."""
        alone = []
        for window, (start, stop) in enumerate(self.spans):
            batch = {
                name: value[window : window + 1, start:stop] if value.dim() > 1 else value[window : window + 1]
                for name, value in self.items()
            }
            words = self.words[self.words[:, 0] == window] - torch.tensor([window, start])
            alone.append(WordBatch(batch, [(0, stop - start)], words, [len(words)]))
        return alone

    def moved(self, change: Callable[[Tensor], Tensor]) -> WordBatch:
        """The same with every tensor of the forward changed, such as put on a device."""
        return WordBatch({name: change(value) for name, value in self.items()}, self.spans, self.words, self.lengths)


def of_each_row(batch: Inputs, values: Tensor) -> list[Tensor]:
    """Values (windows, tokens, …) at the words of each row, (words of it, …); at all tokens where none are named."""
    return batch.of_rows(values) if isinstance(batch, WordBatch) else list(values)


def row_counts(batch: Inputs) -> set[int]:
    """How many rows a batch holds by each of its tensors: of sentences they may be fewer than of the forward."""
    return {len(batch.lengths)} if isinstance(batch, WordBatch) else {len(value) for value in batch.values()}


def line_logits(model: Callable[..., Any], batch: Inputs) -> Tensor:
    """One line of logits for each row, (n, C); of sentences one for each word, (words, C)."""
    logits: Tensor = model(**batch).logits
    return batch.of_words(logits) if isinstance(batch, WordBatch) else logits


def rows_of(batch: Inputs) -> list[dict[str, Tensor]]:
    """Each row of a batch as a batch of one, without the padding that a mask names."""
    if isinstance(batch, WordBatch):
        return list(batch.rows)
    if isinstance(batch, Probe):
        return batch.rows
    mask = batch.get("attention_mask")
    count = len(next(iter(batch.values())))
    if mask is None or mask.dim() != 2:
        return [{name: value[i : i + 1] for name, value in batch.items()} for i in range(count)]
    rows = []
    for i in range(count):
        real = mask[i].nonzero()[:, 0]
        rows.append(
            {
                name: value[i : i + 1, real] if _has_tokens(value, mask) else value[i : i + 1]
                for name, value in batch.items()
            }
        )
    return rows


def batch_logits(model: Callable[..., Any], batch: Inputs) -> Tensor:
    """Logits (n, C) of a batch, or (words, C); of its rows one by one where the model refuses them beside one another.

    BART's classification class, for one, wants equally many end tokens in all rows, and a text may hold one itself.

    Args:
        model: its forward returns ``logits``.
        batch: keyword arguments of the forward, first dimension n, on the model's device.
    """
    try:
        logits = line_logits(model, batch)
    except Exception:
        rows = rows_of(batch)
        if len(rows) == 1:
            raise
        logits = torch.cat([line_logits(model, row) for row in rows])
    return logits


def odd_rows(model: Callable[..., Any], batch: Inputs) -> list[int]:
    """Positions of the rows for which a model refuses a batch: those that few others can stand beside.

    None where the model takes every pair, and where there is only one row, of which nobody needs to be told.

    Args:
        model: its forward raises on what it refuses.
        batch: keyword arguments of the forward, first dimension n, padded.
    """
    count = len(next(iter(batch.values())))
    beside_first = [
        i for i in range(1, count) if _refuses(model, {name: value[[0, i]] for name, value in batch.items()})
    ]
    if 2 * len(beside_first) <= count:
        return beside_first
    return [i for i in range(count) if i not in beside_first]


def _refuses(model: Callable[..., Any], batch: Inputs) -> bool:
    try:
        with torch.no_grad():
            model(**batch)
    except ValueError:
        return True
    return False


def _has_tokens(value: Tensor, mask: Tensor) -> bool:
    """Whether a tensor's second dimension is that of a mask; pictures beside a text have four dimensions."""
    return value.shape[1:2] == mask.shape[1:] and value.dim() <= 3


def padded_as_batches_are(probes: Sequence[Inputs]) -> list[Inputs]:
    """The probes without those padded on another side than the first one that is padded.

    The first is padded as the backbone's batches are. Padding on the other side shifts the positions of many models,
    which nobody is hurt by, because no batch is ever padded so.
    """
    sides = [_padded_sides(probe) for probe in probes]
    own = next((side for side in sides if side), set())
    return [probe for probe, side in zip(probes, sides, strict=True) if side <= own]


def _padded_sides(batch: Inputs) -> set[str]:
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return set()
    return {side for side, column in (("left", 0), ("right", -1)) if bool((mask[:, column] == 0).any())}


def pads_left(batch: Inputs) -> bool:
    """Whether a row of a batch begins with padding."""
    return "left" in _padded_sides(batch)


def on_device(batch: Inputs, device: torch.device) -> dict[str, Tensor]:
    """A batch on a device; a probe, or sentences, with what it knows of its rows."""
    if isinstance(batch, WordBatch):
        return batch.moved(lambda value: value.to(device))
    moved = {name: value.to(device) for name, value in batch.items()}
    return Probe(moved, [on_device(row, device) for row in batch.rows]) if isinstance(batch, Probe) else moved


def needs_equal_lengths(model: Callable[..., Any], probes: Sequence[Inputs], name: str = "") -> bool:
    """Whether rows of a model have to run in batches of equal length, because padding changes their numbers.

    Args:
        model: in eval mode; its forward returns ``logits`` (n, C).
        probes: mixed batches with ragged lengths, the first padded as the backbone's batches are, and a row of full
            length; those padded on the other side are left out.
        name: the model's name, for the error.

    Raises:
        CutError: a row's logits depend on the other rows even where all are of one length, or it cannot run alone.
    """
    with in_float32(model):
        return of_equal_length_only(_logits_of(model), probes, name or type(model).__name__)


def _logits_of(model: Callable[..., Any]) -> Callable[[Inputs], Sequence[Tensor]]:
    def logits(batch: Inputs) -> Sequence[Tensor]:
        with torch.no_grad():
            value: Tensor = model(**batch).logits
        if isinstance(batch, WordBatch):
            # Of every token, not of words alone: in a probe windows are sentences.
            return [row[start:stop] for row, (start, stop) in zip(value, batch.spans, strict=True)]
        return list(value)

    return logits


def of_equal_length_only(numbers: Callable[[Inputs], Sequence[Tensor]], probes: Sequence[Inputs], name: str) -> bool:
    """As `needs_equal_lengths`, with a function that gives what is compared, (n, …), of a batch."""
    probes = padded_as_batches_are(probes)
    rows = [row for probe in probes for row in rows_of(probe)]
    alone, expected = _run_alone(numbers, rows, name)
    # A row that runs only beside longer ones (some models want so many tokens) lives on their padding.
    if len(alone) == len(rows) and _gap(numbers, probes, expected) <= TOLERANCE:
        return False
    pairs = [equal_length_pair(row) for row in alone]
    partners = [numbers({key: value[1:] for key, value in pair.items()}) for pair in pairs]
    both = [one for two in zip(expected, partners, strict=True) for one in two]
    # Rows of one length that differ more than a pair's, such as pictures, which all are of one size.
    groups = _same_shapes(alone)
    batches = [{key: torch.cat([alone[i][key] for i in group]) for key in alone[group[0]]} for group in groups]
    batched = [expected[i] for group in groups for i in group]
    if (gap := _gap(numbers, [*pairs, *batches], [*both, *batched])) <= TOLERANCE:
        return True
    raise CutError(
        f"{name} gives a row other numbers in a batch than alone, also where all rows are of one length "
        f"({gap:.0e} of the largest): no stored or trained number of it would mean anything"
    )


def equal_length_pair(row: Inputs) -> dict[str, Tensor]:
    """A batch of two rows of one length: a row, and the same with its second token (or sample) for all inner ones."""
    changed = next((key for key in ("input_ids", *row) if key in row and key != "attention_mask"), None)
    pair = {}
    for key, value in row.items():
        partner = value
        if key == changed and value.dim() >= 2:
            # First and last stay: special tokens stand there, which some heads look for.
            partner = value.clone()
            partner[:, 1:-1] = value[:, 1:2]
        pair[key] = torch.cat([value, partner])
    return pair


def _run_alone(
    numbers: Callable[[Inputs], Sequence[Tensor]], rows: Sequence[Inputs], name: str
) -> tuple[list[Inputs], list[Sequence[Tensor]]]:
    """The rows that a model takes alone, and their numbers.

    Raises:
        CutError: it takes none.
    """
    taken: list[Inputs] = []
    results: list[Sequence[Tensor]] = []
    refusal: Exception | None = None
    for row in rows:
        try:
            results.append(numbers(row))
        except Exception as error:  # whatever a forward raises on a row that is too short for it
            refusal = error
        else:
            taken.append(row)
    if not taken:
        raise CutError(f"{name} cannot run on one row alone: {one_line(refusal, 160)}") from refusal
    return taken, results


def equal_length_probes(model: Callable[..., Any], probes: Sequence[Inputs]) -> list[dict[str, Tensor]]:
    """Batches of equal length made of the rows of mixed ones, of those that a model takes alone."""
    rows = [row for probe in probes for row in rows_of(probe)]
    taken, _ = _run_alone(_logits_of(model), rows, type(model).__name__)
    return [equal_length_pair(row) for row in taken]


def equal_length_groups(rows: Sequence[Encoded], most: int | None = None) -> list[list[int]]:
    """Positions of encoded rows in groups that need no padding, each of at most ``most`` rows."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, row in enumerate(rows):
        groups.setdefault(_lengths(row), []).append(position)
    size = most or len(rows)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def batch_groups(rows: Sequence[Encoded], *, equal_lengths: bool) -> list[list[int]]:
    """Positions of encoded rows in the groups that a model runs at once: all in one, unless padding changes them."""
    return equal_length_groups(rows) if equal_lengths else [list(range(len(rows)))]


def _lengths(row: Encoded) -> tuple[Any, ...]:
    return tuple(
        (name, tuple(value.shape) if isinstance(value, Tensor) else len(value)) for name, value in row.inputs.items()
    )


def _same_shapes(rows: Sequence[Inputs]) -> list[list[int]]:
    """Positions of rows that can stand in one batch without padding, in groups of two and more."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, row in enumerate(rows):
        groups.setdefault(tuple((key, value.shape) for key, value in row.items()), []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def _gap(
    numbers: Callable[[Inputs], Sequence[Tensor]], batches: Sequence[Inputs], alone: Sequence[Sequence[Tensor]]
) -> float:
    """The largest difference between rows of batches and the same rows alone, as a share of the largest number."""
    try:
        together = [row for batch in batches for row in numbers(batch)]
    except Exception:  # a batch that the model refuses is no batch for it
        return float("inf")
    worst, scale = 0.0, SMALLEST
    for ours, theirs in zip(together, alone, strict=True):
        if ours.shape != theirs[0].shape:
            return float("inf")
        gap = float((ours - theirs[0]).abs().max())
        # NaN is no agreement.
        worst = max(worst, gap) if gap == gap else float("inf")
        scale = max(scale, float(theirs[0].abs().max()))
    return worst / scale
