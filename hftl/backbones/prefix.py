"""The beginning of a long text that holds all tokens that are kept of it, where that can be told.

A tokenizer reads a text to its end before it cuts the tokens off: 5 MB take seconds and hundreds of megabytes, of which
64 tokens are kept. Where it first cuts the text at blanks, a token depends on its own word and on nothing behind,
so a beginning gives the same tokens, but for the last words before its end. Where it may look at the whole text
(merges across blanks, patterns of its own), the whole text is read.
"""

from __future__ import annotations

import json
from typing import Any

# Shorter texts cost less than the question.
LONG = 50_000
# Characters for each token that is kept, to begin with; doubled until these are enough.
CHARACTERS = 32
# So far from the end a token must lie: farther than a special token is long that might straddle it.
MARGIN = 1_000

AT_SPACES = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
# What looks at a character and those that combine with it.
LOCAL = frozenset({"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents"})


def cuts_at_spaces(tokenizer: Any) -> bool:
    """Whether tokens of a text depend on nothing behind the word that they are in.

    Args:
        tokenizer: a fast tokenizer of transformers.
    """
    backend = tokenizer.backend_tokenizer
    normalizer, pre_tokenizer = (_state(part) for part in (backend.normalizer, backend.pre_tokenizer))
    first = pre_tokenizer.get("pretokenizers", [pre_tokenizer])[0]
    cut = (
        first.get("type") in AT_SPACES
        or (first.get("type") == "ByteLevel" and first.get("use_regex", True))
        or (first.get("type") == "Metaspace" and first.get("split", True))
    )
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    return cut and all(_is_local(step) for step in steps)


def _state(part: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(part.__getstate__()) if part is not None else {}
    return state


def _is_local(step: dict[str, Any]) -> bool:
    if step.get("type") == "Replace":
        # Of patterns only the one for runs of blanks is known not to reach far.
        return "String" in step["pattern"] or step["pattern"].get("Regex") == " {2,}"
    return step.get("type") in LOCAL


def enough_of(tokenizer: Any, text: str, max_length: int) -> str:
    """A beginning of a text with the same first tokens, at most the text.

    Args:
        tokenizer: one that `cuts_at_spaces`, and keeps the first tokens of a text that is too long.
        text: of any length.
        max_length: tokens kept.
    """
    size = max(LONG, max_length * CHARACTERS)
    while size < len(text):
        beginning = text[:size]
        # A word that is cut in two may have other tokens than the whole one.
        safe = beginning.rfind(" ") - MARGIN
        if safe < 0:
            return text
        encoded = tokenizer(beginning, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        # One more than is kept: that there are more is what tells that the text was cut.
        if len(ends) > max_length and ends[max_length] <= safe:
            return beginning
        size *= 2
    return text
