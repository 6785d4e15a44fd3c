"""`Pooled`: how one vector is made of what a base model returns for a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hftl.errors import BackboneError
from hftl.foreign import tree_flatten

Layout = Literal["tokens", "map", "map last"]
# What tells a row's own tokens from padding: of texts, and of pictures that keep their shape.
MASKS = ("attention_mask", "pixel_attention_mask")


@dataclass(frozen=True)
class Pooled:
    """How one vector is made of what a base model returns.

    Attributes:
        kind: ``cls`` for the first token, ``last`` for the last, ``mean`` over the tokens, ``cls+mean`` for both behind
            each other (which DINOv2 and DINOv3 are evaluated with), ``pooler`` for the model's own pooled output,
            ``projection`` for a picture's embedding in the space that a text tower shares, of length one.
        skip: tokens before the first that ``mean`` counts: a picture's class token, and registers, which stand for no
            patch.
        layout: of the output: ``tokens`` (n, t, d), ``map`` (n, d, h, w) or ``map last`` (n, h, w, d).
        mask: the input that tells tokens from padding; None where there is none.
        call: the method of the base model that is called; of one that also has a text tower not its forward.
    """

    kind: str
    skip: int = 0
    layout: Layout = "tokens"
    mask: str | None = None
    call: str = "forward"

    @classmethod
    def by(cls, model: Any, kind: str) -> Pooled:
        """How a model's output is pooled by a kind: as it says itself, or as tokens of texts are."""
        own = getattr(model, "pooling", None)
        return replace(own, kind=kind) if isinstance(own, cls) else cls(kind, mask="attention_mask")

    @property
    def parts(self) -> list[str]:
        """The kinds that this one is put together of, in order."""
        return self.kind.split("+")

    def of(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """The vectors (n, d) of a base model's output; padding, which a mask in the inputs names, is left out.

        Args:
            output: of the base model.
            inputs: keyword arguments of its forward, first dimension n.

        Raises:
            BackboneError: there is nothing in it that could be pooled so.
        """
        if self.kind in ("pooler", "projection"):
            pooled: Tensor = output.pooler_output
            return pooled if self.kind == "pooler" else nn.functional.normalize(pooled, dim=-1)
        # What is averaged in 16 bits is rounded once more than it has to be.
        tokens = tokens_of(output, self.layout).float()
        mask = inputs.get(self.mask) if self.mask else None
        if mask is not None and mask.shape != tokens.shape[:2]:
            # Some models return other tokens than they read.
            mask = None
        return torch.cat([PARTS[part](tokens, mask, self.skip) for part in self.parts], dim=1)


def _first_token(tokens: Tensor, mask: Tensor | None, _skip: int) -> Tensor:
    if mask is None:
        return tokens[:, 0]
    return tokens[torch.arange(len(tokens), device=tokens.device), mask.int().argmax(1)]


def _last_token(tokens: Tensor, mask: Tensor | None, _skip: int) -> Tensor:
    if mask is None:
        return tokens[:, -1]
    last = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
    return tokens[torch.arange(len(tokens), device=tokens.device), last]


def _over_tokens(tokens: Tensor, mask: Tensor | None, skip: int) -> Tensor:
    if mask is None:
        return tokens[:, skip:].mean(1)
    weights = mask[:, skip:].to(tokens)[..., None]
    return (tokens[:, skip:] * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


# From tokens (n, t, d), a mask (n, t) or none, and how many come before the first that stands for a patch.
PARTS: dict[str, Callable[[Tensor, Tensor | None, int], Tensor]] = {
    "cls": _first_token,
    "last": _last_token,
    "mean": _over_tokens,
}


def tokens_of(output: Any, layout: Layout) -> Tensor:
    """A base model's last output as tokens (n, t, d), a map's read row by row.

    Raises:
        BackboneError: it returns neither.
    """
    last = last_of(output)
    if last.dim() == 3:
        return last
    return last.flatten(1, 2) if layout == "map last" else last.flatten(2).mT


def last_of(output: Any) -> Tensor:
    """What a base model returns of its last layer: (n, t, d), (n, d, h, w) or (n, h, w, d).

    Raises:
        BackboneError: it returns no such thing.
    """
    # Modules inside a classification class may return plain tuples.
    leaves = [output.get("last_hidden_state")] if isinstance(output, Mapping) else tree_flatten(output)[0]
    for value in leaves:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (3, 4):
            return value
    raise BackboneError("it returns no tokens (n, t, d) and no map (n, d, h, w)")


def layout_of(last: Tensor) -> Layout:
    """The layout of a square picture's last output.

    Raises:
        BackboneError: it is a map of as many channels as it has rows, which tells nobody which is which.
    """
    if last.dim() == 3:
        return "tokens"
    _, first, middle, end = last.shape
    if first == middle != end:
        return "map last"
    if middle == end != first:
        return "map"
    raise BackboneError(f"it returns a map of the shape {tuple(last.shape[1:])}, whose channels cannot be told")
