"""Tags of words, and the spans that they mark: which scheme tags follow, and where each entity begins and ends.

A span is what seqeval 1.2 takes for one (its default mode, which follows the CoNLL-2000 script ``conlleval``). Where
tags are wrong in form, such as an I- behind an O, it is lenient: a span begins there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

OUTSIDE = "O"
_PREFIXED = re.compile(r"[BIESLU](-.*)?", re.DOTALL)
# BILOU's names for what BIOES calls the end and the single word.
_AS_BIOES = {"L": "E", "U": "S"}


@dataclass(frozen=True)
class Span:
    """Words ``start`` to ``end`` (exclusive) of a sentence, which are of one type."""

    type: str
    start: int
    end: int


@dataclass(frozen=True)
class Tagging:
    """The tags of a data set or model, in the order of their numbers.

    Attributes:
        names: of the tags, such as ``O``, ``B-person``, ``I-person``.
    """

    names: tuple[str, ...]

    @cached_property
    def scheme(self) -> str:
        """``IO``, ``BIO`` or ``BIOES`` (``BILOU`` is one of its spellings); ``plain`` where each word is judged alone.

        Tags such as NOUN and VERB are plain: each but ``O`` is a span of its one word.
        """
        tags = [name for name in self.names if name != OUTSIDE]
        if not tags or not all(_PREFIXED.fullmatch(name) for name in tags):
            return "plain"
        prefixes = {name[0] for name in tags}
        if prefixes & set(_AS_BIOES):
            return "BILOU" if not prefixes & {"E", "S"} else "plain"
        if prefixes & {"E", "S"}:
            return "BIOES"
        return "BIO" if "B" in prefixes else "IO"

    @cached_property
    def types(self) -> list[str]:
        """The types of spans, sorted."""
        return sorted({kind for _, kind in self._parts if kind is not None})

    @cached_property
    def _parts(self) -> list[tuple[str, str | None]]:
        """Of each tag the prefix, in the letters of BIOES, and the type; None for what is outside."""
        return [self._part(name) for name in self.names]

    def _part(self, name: str) -> tuple[str, str | None]:
        if name == OUTSIDE:
            return OUTSIDE, None
        if self.scheme == "plain":
            return "S", name
        # As seqeval has it: B-geo-loc is of type geo-loc, and a bare B of type "_".
        return _AS_BIOES.get(name[0], name[0]), name[2:] or "_"

    def spans(self, tags: Sequence[int]) -> Iterator[Span]:
        """The spans of a sentence, in their order.

        Args:
            tags: the numbers of the words' tags.
        """
        begun, before, kind_before = 0, OUTSIDE, None
        for place, number in enumerate((*tags, None)):
            prefix, kind = (OUTSIDE, None) if number is None else self._parts[number]
            # Whatever else differs, another type ends one span and begins the next.
            same = kind == kind_before and prefix in "IE" and before in "BI"
            if kind_before is not None and not same:
                yield Span(kind_before, begun, place)
            if kind is not None and not same:
                begun = place
            before, kind_before = prefix, kind


def said_scheme(tagging: Tagging) -> str:
    """The scheme for a person."""
    kinds = len(tagging.types)
    types = f"{kinds:,} type{'s' if kinds != 1 else ''}"
    if tagging.scheme == "plain":
        return f"plain tags of {types}, each word judged alone"
    return f"scheme {tagging.scheme} of {types}"
