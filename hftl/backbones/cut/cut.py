"""Where a model is cut at its frozen frontier, so that only what can change is computed again.

The model's own forward is always what runs. Given the parameters of the head, the *frozen frontier* is the set of
outermost frozen modules that run before anything trainable. What they return is kept; training replays the same
forward with those modules answering from what was kept, so that pooling, gathers and masks around the head are right
by construction and no architecture needs code of its own. What is kept is pruned to what the logits depend on, which
one gradient tells.

Three kinds of cut for a head, the smallest that is exact wins:

- ``linear``: the head is one Linear whose input, mixed over tokens by fixed weights, gives the logits. One vector is
  kept.
- ``replay``: the outputs of the frontier are kept, reduced to the token positions used, or whole.
- ``pooled``: the caller asked for a pooled vector in place of the model's own head (`pooled_cut`).

Where each word has logits of its own, a row is a sentence, and what is kept of it has one entry for each word: the
frontier's outputs at its first token. Each word is then replayed as a row of one token, which is exact where the head
looks at one token at a time, and proved as everything else is.

Where more than the head trains, ``blocks`` keeps what the frozen blocks below it return (`hftl.backbones.cut.blocks`).

A cut is found and proved by `hftl.backbones.cut.search`, read by `hftl.backbones.cut.capture`, replayed by
`hftl.backbones.cut.replay`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Leaf:
    """One tensor that a frozen module returns.

    Attributes:
        column: the name it is kept under; None if the logits do not depend on it.
        shape: its shape for one row; the token dimension, where there is one, is -1.
        dtype: such as ``"float32"``.
        tokens: whether its first dimension runs over tokens.
    """

    column: str | None
    shape: list[int]
    dtype: str
    tokens: bool


@dataclass(frozen=True)
class Call:
    """One call of a frontier module: its name and the structure of what it returned (a serialised TreeSpec)."""

    module: str
    structure: str
    leaves: list[Leaf | None]


@dataclass(frozen=True)
class Cut:
    """Where a model is cut and what is kept of each row.

    Attributes:
        kind: ``"linear"``, ``"replay"``, ``"pooled"`` or ``"blocks"``.
        head: the names of the parameters that train.
        linear: the name of the Linear that is the head, for kind ``linear``.
        bias: whether that Linear has a bias.
        pooling: for kind ``pooled``, how; see `hftl.backbones.pooling.Pooled`.
        calls: the frontier's calls in the order in which they run (for ``pooled`` only the last, which is pooled).
        tokens: names of integer inputs kept beside the features because the forward outside the frontier may read them.
        blanks: per-row shape and dtype of every other input; the replay gives zeros for them.
        positions: token positions kept of each row; None for all.
        width: elements of one row's feature vector for kinds ``linear`` and ``pooled``.
        words: whether one entry is kept for each word of a row, and not one, or one for each token.
    """

    kind: Literal["linear", "replay", "pooled", "blocks"]
    head: list[str]
    linear: str | None = None
    bias: bool = True
    pooling: str | None = None
    calls: list[Call] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    blanks: dict[str, list[Any]] = field(default_factory=dict)
    positions: int | None = None
    width: int = 0
    words: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cut:
        """From its plain JSON form, `as_json`."""
        calls = [
            Call(c["module"], c["structure"], [Leaf(**leaf) if leaf else None for leaf in c["leaves"]])
            for c in data["calls"]
        ]
        return cls(**{**data, "calls": calls})

    def as_json(self) -> dict[str, Any]:
        """The plain JSON form; as the first release wrote it where words are not told apart."""
        plain = asdict(self)
        return plain if self.words else {name: value for name, value in plain.items() if name != "words"}

    def kept(self) -> dict[str, tuple[str, list[int]]]:
        """Each column's dtype and per-row shape; a leading -1 marks a ragged column: an entry for each token."""
        if self.kind in ("linear", "pooled"):
            return {"features": ("float32", [-1, self.width] if self.words else [self.width])}
        length = -1 if self.positions is None else self.positions
        columns = {
            leaf.column: (leaf.dtype, [length, *leaf.shape[1:]] if leaf.tokens else leaf.shape)
            for call in self.calls
            for leaf in call.leaves
            if leaf is not None and leaf.column is not None
        }
        return columns | {name: ("int64", [length]) for name in self.tokens}
