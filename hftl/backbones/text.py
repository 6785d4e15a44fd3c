"""Texts and pairs of texts: any model that ``AutoModelForSequenceClassification`` can load."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hftl.backbones.batching import Probe, on_device
from hftl.backbones.configuration import digest_text
from hftl.backbones.prefix import LONG, cuts_at_spaces, enough_of
from hftl.backbones.pretrained import PretrainedBackbone
from hftl.backbones.protocol import Encoded
from hftl.backbones.sentence import MODULES, read_sentence_head
from hftl.backbones.source import Source
from hftl.errors import BackboneError, BadRowError
from hftl.wording import one_line

# Tokenizers that know no limit say so with a huge number.
NO_LIMIT = 1_000_000
LONGEST_PROBE = 1024
PROBES = [
    ("A short one.",),
    ("A somewhat longer sentence, with a comma and a few more words than the others have.",),
    ("Two words",),
    # Some models attend in chunks, and pad a row that fills one and a half of them by themselves.
    ("This one has about a dozen words, and it ends here.",),
]
PAIR_PROBES = [
    ("What is asked here?", "What is answered there, at somewhat greater length."),
    ("One", "Two, three"),
]


class TextBackbone(PretrainedBackbone):
    """A sequence classification model of transformers with its tokenizer.

    Args:
        source: where its files are.
        max_length: tokens kept of a row, special tokens included; None for what the model allows.
    """

    modality = "text"
    wants: Literal["file", "text"] = "text"
    suffixes: frozenset[str] = frozenset()
    pipeline_tag = "text-classification"
    auto_class = AutoModelForSequenceClassification
    processor_file = "tokenizer.json"
    max_length: int

    def __init__(self, source: Source, max_length: int | None = None) -> None:
        super().__init__(source)
        self._pad_before: str | None = None
        limits = [n for n in (self._tokenizer_limit(), self._position_limit()) if n]
        self.max_length = min([max_length, *limits] if max_length else limits or [512])

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, with a padding token (the end token where it brings none).

        Raises:
            BackboneError: the checkpoint has no tokenizer, or one that cannot pad.
        """
        tokenizer = self._read_tokenizer()
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise BackboneError(f"{self.name}: its tokenizer has no padding, end or unknown token to pad with")
        self._pad_as_positions_count(tokenizer)
        return tokenizer

    def _read_tokenizer(self, **options: Any) -> Any:
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.source.folder, trust_remote_code=False, local_files_only=True, **options
            )
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
            raise BackboneError(f"{self.name} has no usable tokenizer: {one_line(error, 200)}") from error
        if not tokenizer.is_fast:
            raise BackboneError(f"{self.name} has only a slow tokenizer; hftl needs a tokenizer.json")
        return tokenizer

    def _pad_as_positions_count(self, tokenizer: Any) -> None:
        """Pad with the configuration's token where positions are counted from it: the weights were trained so."""
        stated = getattr(self.base_config.get_text_config(), "pad_token_id", None)
        if self._padding_index is None or stated in (None, tokenizer.pad_token_id):
            return
        token = tokenizer.convert_ids_to_tokens(stated) if 0 <= stated < len(tokenizer) else None
        added = tokenizer.added_tokens_decoder.get(stated)
        # A word that became a padding token would be cut out of texts wherever it stands in one.
        if token not in tokenizer.all_special_tokens and not (added and added.special):
            raise BackboneError(
                f"{self.name}: config.json pads with id {stated}, from which the model counts positions, and the "
                f"tokenizer with {tokenizer.pad_token!r} (id {tokenizer.pad_token_id}): make them agree in a copy of it"
            )
        self._pad_before, tokenizer.pad_token = tokenizer.pad_token, token

    @cached_property
    def _tokenizer_digest(self) -> str:
        """Of a tokenizer's own file, which may hold a vocabulary of many megabytes."""
        backend = self.tokenizer.backend_tokenizer
        # What was last asked of a tokenizer stays in it; neither is a property of its own.
        backend.no_truncation()
        backend.no_padding()
        return digest_text(backend.to_str())

    def processor_identity(self) -> dict[str, Any]:
        """The whole tokenizer (vocabulary, rules, templates), padding, and the number of tokens kept."""
        tokenizer = self.tokenizer
        return {
            "tokenizer": self._tokenizer_digest,
            "padding_side": tokenizer.padding_side,
            "truncation_side": tokenizer.truncation_side,
            "pad_token": tokenizer.pad_token,
            "inputs": list(tokenizer.model_input_names),
            "max_length": self.max_length,
        }

    def identity(self) -> dict[str, Any]:
        """As for every model, and the padding token where the configuration named another one."""
        changed = self._pads_otherwise
        return super().identity() | ({"pad_token_id": self.tokenizer.pad_token_id} if changed else {})

    def agreeing_config(self) -> Any:
        """The configuration with the padding token that the tokenizer uses, by which many classes find the last token.

        The first release did so only where the configuration names none.
        """
        config = super().agreeing_config()
        for part in (config, config.get_text_config()):
            part.pad_token_id = self.tokenizer.pad_token_id
        return config

    @property
    def notes(self) -> list[str]:
        """As for every model; and that tokenizer and configuration named two padding tokens, and which is used."""
        notes, config, tokenizer = super().notes, self.base_config.get_text_config(), self.tokenizer
        stated = getattr(config, "pad_token_id", None)
        used = f"{tokenizer.pad_token!r} (id {tokenizer.pad_token_id})"
        if self._pads_otherwise:
            notes.append(
                f"padding: config.json says id {stated}, the tokenizer {used}; the run and its model use {used}"
            )
        elif self._pad_before is not None:
            before = f"the tokenizer says {self._pad_before!r}"
            notes.append(f"padding: {before}, config.json {used}, from which it counts positions; {used} is used")
        return notes

    @property
    def _pads_otherwise(self) -> bool:
        """Whether the configuration names a padding token other than the tokenizer's."""
        stated = getattr(self.base_config.get_text_config(), "pad_token_id", None)
        return stated is not None and stated != self.tokenizer.pad_token_id

    def encode(self, rows: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[Encoded]:
        """Tokenise rows of one or two strings; lists of integers, one for each input of the model.

        Raises:
            BadRowError: a token has no embedding in the model.
        """
        if not rows:
            return []
        # A call takes either single texts or pairs; the rows of one data set are all of one kind.
        second = [row[1] for row in rows] if len(rows[0]) == 2 else None
        # Two texts share the room by their whole lengths.
        first = [row[0] if second or len(row[0]) <= LONG else self._beginning(row[0]) for row in rows]
        encoded = self.tokenizer(first, second, truncation=True, max_length=self.max_length, padding=False)
        inputs = list(encoded.keys())
        for name, limit in self._limits.items():
            for row, ids in zip(names, encoded.get(name, ()), strict=False):
                if ids and max(ids) >= limit:
                    raise BadRowError(row, self._too_large(name, max(ids), limit))
        return [
            Encoded(
                {name: encoded[name][i] for name in inputs},
                cost=len(encoded["input_ids"][i]),
                truncated=bool(encoding.overflowing),
            )
            for i, encoding in enumerate(encoded.encodings)
        ]

    def _beginning(self, text: str) -> str:
        """What of a very long text is read, to the same tokens."""
        if self.tokenizer.truncation_side != "right" or not self._cuts_at_spaces:
            return text
        return enough_of(self.tokenizer, text, self.max_length)

    @cached_property
    def _cuts_at_spaces(self) -> bool:
        return cuts_at_spaces(self.tokenizer)

    @cached_property
    def _limits(self) -> dict[str, int]:
        """How many tokens and types of tokens the model has embeddings for, where its configuration says."""
        config = self.base_config.get_text_config()
        stated = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
        limits = {name: getattr(config, field, None) for name, field in stated.items()}
        # No types at all means that the model does not read them.
        return {name: limit for name, limit in limits.items() if isinstance(limit, int) and limit > 0}

    def _too_large(self, name: str, value: int, limit: int) -> str:
        if name == "input_ids":
            token = self.tokenizer.convert_ids_to_tokens(value)
            return (
                f"its token {token!r} has the id {value:,}, but {self.name} has embeddings for {limit:,} tokens: its "
                "tokenizer was extended and the model was not (resize_token_embeddings)"
            )
        return (
            f"its second text is marked with token type {value}, but {self.name} knows {limit} "
            f"type{'s' if limit > 1 else ''} of tokens: join the texts into one column, or choose another model"
        )

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad token lists to the longest: int64 (rows, tokens) each."""
        return self._padded(rows, self.tokenizer.padding_side)

    def probes(self) -> list[dict[str, Tensor]]:
        """Ragged texts padded on the own side and the other, pairs, and a text that fills the model beside a short one.

        A text of a very long model is not longer than 1,024 tokens.
        """
        rows = self.encode(PROBES, ["probe"] * len(PROBES))
        own_side = self.tokenizer.padding_side
        sides = (own_side, "left" if own_side == "right" else "right")
        probes: list[dict[str, Tensor]] = [self._probe(rows, side) for side in sides]
        # A model that cannot read pairs says so of the first pair that it is given.
        with suppress(BadRowError):
            probes.append(self._probe(self.encode(PAIR_PROBES, ["probe"] * len(PAIR_PROBES)), own_side))
        words = min(self.max_length, LONGEST_PROBE)
        full = self.encode([(text_of(words),)], ["probe"])[0]
        if full.cost > LONGEST_PROBE:
            full = self.encode([(text_of(words * LONGEST_PROBE // full.cost),)], ["probe"])[0]
        probes.append(self._probe([rows[0], full], own_side))
        return [on_device(probe, self.device) for probe in probes]

    def _probe(self, rows: Sequence[Encoded], side: str) -> Probe:
        return Probe(self._padded(rows, side), [self._padded([row], side) for row in rows])

    def load_trained(self) -> tuple[nn.Module, set[str]]:
        """As for every model; what was exported for sentence-transformers is put together from its modules."""
        if not (self.source.folder / MODULES).exists():
            return super().load_trained()
        body, untrained = self._load(AutoModel, copy.deepcopy(self.base_config))
        # A pooler that nothing reads may be missing.
        lacking = {name for name in untrained if not name.startswith("pooler.")}
        return read_sentence_head(self.source.folder, body).eval(), lacking

    def save_processor(self, folder: Path) -> None:
        """Write the tokenizer's files; its ``model_max_length`` is what features were computed with."""
        self.tokenizer.model_max_length = self.max_length
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.save_pretrained(folder)

    def _padded(self, rows: Sequence[Encoded], side: str) -> dict[str, Tensor]:
        fill = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        longest = max(max(row.cost for row in rows), 1)
        batch = {}
        for name in rows[0].inputs:
            tensor = torch.full((len(rows), longest), fill.get(name, 0), dtype=torch.int64)
            for i, row in enumerate(rows):
                if row.cost:
                    where = slice(0, row.cost) if side == "right" else slice(longest - row.cost, longest)
                    tensor[i, where] = torch.tensor(row.inputs[name], dtype=torch.int64)
            batch[name] = tensor
        return batch

    def _tokenizer_limit(self) -> int | None:
        limit = int(self.tokenizer.model_max_length)
        return limit if limit < NO_LIMIT else None

    def _position_limit(self) -> int | None:
        """The number of learned positions, less those that padding-aware embeddings skip."""
        config = self.base_config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        if not isinstance(limit, int) or limit <= 0 or limit >= NO_LIMIT:
            return None
        # Families that count positions from padding_idx + 1 declare that many more than a text may use.
        return limit if self._padding_index is None else limit - self._padding_index - 1

    @cached_property
    def _padding_index(self) -> int | None:
        """The padding token from which positions are counted; the class says so on its position embedding."""
        return padding_index(self.skeleton(self.base_config))


def padding_index(model: nn.Module) -> int | None:
    """The padding token from which a model counts positions; None where it counts them from the first token."""
    for name, module in model.named_modules():
        if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return int(module.padding_idx)
    return None


def text_of(count: int) -> str:
    """So many words, and not all the same: over equal words attention is the same wherever it looks, random or not."""
    words = " ".join(text for (text,) in PROBES).split()
    return " ".join(itertools.islice(itertools.cycle(words), count))
