"""The cut behind a model's first blocks: what they return is kept whole, and the model goes on from there.

The frontier is that of heads (`hftl.backbones.cut.frontier`), with all parameters behind the blocks in the head's
place. No pretrained parameter is touched: only a head that was drawn anew may have been given other values, so that
the logits depend on what they can depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from hftl.backbones.batching import padded_as_batches_are
from hftl.backbones.blocks import find_depths
from hftl.backbones.cut.capture import Capture
from hftl.backbones.cut.cut import Cut, Leaf
from hftl.backbones.cut.replay import kept_leaves, model_inputs
from hftl.backbones.cut.search import compare_logits, whole_cut
from hftl.errors import CutError
from hftl.foreign import tree_unflatten, treespec_loads
from hftl.wording import one_line


def blocks_cut(
    model: nn.Module,
    head: set[str],
    count: int,
    probes: Sequence[Mapping[str, Tensor]],
    autocast: torch.dtype | None = None,
) -> Cut:
    """What the first ``count`` blocks return, proved to give the model's logits.

    Args:
        model: in eval mode, its head with values that hide nothing; see `hftl.backbones.cut.search.prepare_head`.
        head: names of its head's parameters.
        count: how many blocks, one or more.
        probes: batches of keyword arguments for the forward; the first is padded as the backbone pads.
        autocast: compute in this dtype where torch deems it safe; None for float32 throughout.

    Raises:
        CutError: what stands behind the blocks cannot be computed from what they return.
    """
    depths = find_depths(model, head)
    behind = {name for name, depth in depths.of.items() if depth > count}
    last = depths.names[count - 1]
    own = padded_as_batches_are(probes)
    try:
        cut = _cut_after(last, model, behind, probes[0])
        _prove(model, cut, own, together=True)
        if autocast is None:
            return cut
        with torch.autocast(next(iter(probes[0].values())).device.type, autocast):
            # Its tensors are of other types, which are those that training meets.
            cut = _cut_after(last, model, behind, probes[0])
            # Rows of several batches are not compared: what other padding changes of bfloat16 is no mistake.
            _prove(model, cut, own, together=False, autocast=autocast)
    except CutError:
        raise
    except Exception as error:  # whatever a forward raises on answers in place of its modules
        raise CutError(f"what {last} returns cannot be put in its place ({one_line(error, 120)})") from error
    return cut


def _cut_after(last: str, model: nn.Module, behind: set[str], batch: Mapping[str, Tensor]) -> Cut:
    """What the frontier returns below the parameters ``behind``, whose last block is named; not proved."""
    cut = whole_cut(model, behind, batch)
    kept = [call.module for call in cut.calls if any(leaf is not None and leaf.column for leaf in call.leaves)]
    if last not in kept:
        raise CutError(f"something that trains runs before {last}")
    lengths = {batch[name].shape[1] for name in cut.tokens}
    calls = [replace(call, leaves=[_of_any_length(leaf, lengths) for leaf in call.leaves]) for call in cut.calls]
    return replace(cut, kind="blocks", calls=calls)


def _of_any_length(leaf: Leaf | None, lengths: set[int]) -> Leaf | None:
    """A blank of as many tokens as a batch has, also where all rows share it, as they share positions."""
    if leaf is None or leaf.column is not None or not leaf.shape or leaf.shape[0] not in lengths:
        return leaf
    return replace(leaf, shape=[-1, *leaf.shape[1:]])


def _prove(
    model: nn.Module,
    cut: Cut,
    probes: Sequence[Mapping[str, Tensor]],
    *,
    together: bool,
    autocast: torch.dtype | None = None,
) -> None:
    """Compare the model's logits with those that it gives from what was kept.

    Args:
        model: the model.
        cut: of it.
        probes: batches, padded as the backbone pads.
        together: compare the rows of all batches in one as well, which is what training makes of rows.
        autocast: what torch computes in where it deems that safe, already entered.

    Raises:
        CutError: they differ.
    """
    padding = Padding.of(probes[0])
    batches, expected = [], []
    with torch.no_grad():
        for probe in probes:
            expected.append(model(**probe).logits)
            batches.append(rows_of_columns(Capture(model, [cut], autocast)(probe)[0]))
        if together:
            batches.append([row for batch in batches for row in batch])
            expected.append(torch.cat(expected))
        with continued(model, model, cut):
            for rows, logits in zip(batches, expected, strict=True):
                compare_logits(model(**padding.collate(rows)).logits, logits)


@dataclass(frozen=True)
class Padding:
    """How rows of different lengths become one batch.

    Attributes:
        left: whether what is missing is filled in before a row.
        fill: by the name of an input of tokens, what is filled in.
    """

    left: bool
    fill: Mapping[str, int]

    @classmethod
    def of(cls, probe: Mapping[str, Tensor]) -> Padding:
        """As a batch is padded that the backbone made of rows of different lengths."""
        mask = probe.get("attention_mask")
        if mask is None or mask.dim() != 2 or bool(mask.all()):
            return cls(False, {})
        gaps = mask == 0
        tokens = {name: value for name, value in probe.items() if value.shape == mask.shape}
        return cls(bool(gaps[:, 0].any()), {name: int(value[gaps][0]) for name, value in tokens.items()})

    def collate(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Rows as one batch: (n, …) for each column, rows of different lengths filled up to the longest."""
        return {name: self._column(name, [row[name] for row in rows]) for name in rows[0]}

    def _column(self, name: str, values: list[Tensor]) -> Tensor:
        if len({value.shape for value in values}) == 1:
            return torch.stack(values)
        side = "left" if self.left else "right"
        return pad_sequence(values, batch_first=True, padding_value=self.fill.get(name, 0), padding_side=side)


def rows_of_columns(columns: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Columns of n rows, tensors (n, …) or lists of n tensors, as n rows."""
    count = len(next(iter(columns.values())))
    return [{name: value[i] for name, value in columns.items()} for i in range(count)]


@contextmanager
def continued(model: nn.Module, inside: nn.Module, cut: Cut) -> Iterator[None]:
    """While entered, a model takes what its first blocks returned in place of its inputs; its inputs it takes as well.

    Args:
        model: what is called with keyword arguments: a cut's columns, each (n, …), or the model's own inputs.
        inside: the model that the cut was made of; the same, or one that ``model`` wraps.
        cut: of kind ``blocks``.
    """
    answers = _Answers(cut)
    modules = {name: inside.get_submodule(name) for name in dict.fromkeys(call.module for call in cut.calls)}
    before = {name: module.__dict__.get("forward") for name, module in modules.items()}
    handle = model.register_forward_pre_hook(answers.begin, with_kwargs=True)
    for module in modules.values():
        module.__dict__["forward"] = answers.instead_of(module.forward)
    try:
        yield
    finally:
        handle.remove()
        for name, module in modules.items():
            del module.__dict__["forward"]
            if before[name] is not None:
                module.__dict__["forward"] = before[name]


class _Answers:
    """What frozen modules return in a forward that goes on from kept columns."""

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self.structures = [treespec_loads(call.structure) for call in cut.calls]
        self.columns = set(cut.kept())
        self.kept: dict[str, Tensor] | None = None
        self.given = 0

    def begin(self, _module: nn.Module, args: Any, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Take columns for inputs, where columns are given."""
        self.kept, self.given = None, 0
        if inputs.keys() != self.columns:
            return args, inputs
        self.kept = inputs
        return args, model_inputs(self.cut, inputs, self._rows)

    @property
    def _rows(self) -> int:
        return len(next(iter((self.kept or {}).values())))

    def instead_of(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A forward that returns what was kept, in the order of the cut's calls, and runs where nothing is due."""

        def answer(*args: Any, **kwargs: Any) -> Any:
            if self.kept is None or self.given == len(self.cut.calls):
                return forward(*args, **kwargs)
            number, self.given = self.given, self.given + 1
            length = self.kept[self.cut.tokens[0]].shape[1] if self.cut.tokens else 0
            leaves = kept_leaves(self.cut.calls[number], self.kept, self._rows, length)
            return tree_unflatten(leaves, self.structures[number])

        return answer
