"""Texts and pairs of texts: any model that ``AutoModelForSequenceClassification`` can load."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hftl.backbones.pretrained import PretrainedBackbone, digest_text
from hftl.backbones.protocol import Encoded
from hftl.backbones.sentence import MODULES, read_sentence_head
from hftl.backbones.source import Source
from hftl.errors import BackboneError
from hftl.tasks import Task
from hftl.wording import one_line

# Tokenizers that know no limit say so with a huge number.
NO_LIMIT = 1_000_000
PROBES = [
    ("A short one.",),
    ("A somewhat longer sentence, with a comma and a few more words than the others have.",),
    ("Two words",),
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
    max_length: int

    def __init__(self, source: Source, max_length: int | None = None) -> None:
        super().__init__(source)
        limits = [n for n in (self._tokenizer_limit(), self._position_limit()) if n]
        self.max_length = min([max_length, *limits] if max_length else limits or [512])

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, with a padding token (the end token where it brings none).

        Raises:
            BackboneError: the checkpoint has no tokenizer, or one that cannot pad.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.source.folder, trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
            raise BackboneError(f"{self.name} has no usable tokenizer: {one_line(error, 200)}") from error
        if not tokenizer.is_fast:
            raise BackboneError(f"{self.name} has only a slow tokenizer; hftl needs a tokenizer.json")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise BackboneError(f"{self.name}: its tokenizer has no padding, end or unknown token to pad with")
        return tokenizer

    def processor_identity(self) -> dict[str, Any]:
        """The whole tokenizer (vocabulary, rules, templates), padding, and the number of tokens kept."""
        tokenizer = self.tokenizer
        backend = tokenizer.backend_tokenizer
        # What was last asked of a tokenizer stays in it; neither is a property of its own.
        backend.no_truncation()
        backend.no_padding()
        return {
            "tokenizer": digest_text(backend.to_str()),
            "padding_side": tokenizer.padding_side,
            "truncation_side": tokenizer.truncation_side,
            "pad_token": tokenizer.pad_token,
            "inputs": list(tokenizer.model_input_names),
            "max_length": self.max_length,
        }

    def config(self, task: str, label_names: Sequence[str]) -> Any:
        """As for every model, with the padding token that the tokenizer uses."""
        config = super().config(task, label_names)
        for part in (config, config.get_text_config()):
            if getattr(part, "pad_token_id", None) is None:
                part.pad_token_id = self.tokenizer.pad_token_id
        return config

    def encode(self, rows: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[Encoded]:
        """Tokenise rows of one or two strings; lists of integers, one for each input of the model."""
        if not rows:
            return []
        # A call takes either single texts or pairs; the rows of one data set are all of one kind.
        first = [row[0] for row in rows]
        second = [row[1] for row in rows] if len(rows[0]) == 2 else None
        encoded = self.tokenizer(first, second, truncation=True, max_length=self.max_length, padding=False)
        inputs = list(encoded.keys())
        return [
            Encoded(
                {name: encoded[name][i] for name in inputs},
                cost=len(encoded["input_ids"][i]),
                truncated=bool(encoding.overflowing),
            )
            for i, encoding in enumerate(encoded.encodings)
        ]

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad token lists to the longest: int64 (rows, tokens) each."""
        return self._padded(rows, self.tokenizer.padding_side)

    def probes(self) -> list[dict[str, Tensor]]:
        """Ragged texts padded on the right and on the left, pairs, and one text that fills the model."""
        rows = self.encode(PROBES, ["probe"] * len(PROBES))
        probes = [self._padded(rows, side) for side in ("right", "left")]
        probes.append(self.collate(self.encode(PAIR_PROBES, ["probe"] * len(PAIR_PROBES))))
        if self.max_length <= 1024:
            probes.append(self.collate(self.encode([("word " * self.max_length,)], ["probe"])))
        return probes

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
        # Families that count positions from padding_idx + 1 declare that many more than a text may use; the class says
        # so with a padding index on its position embedding.
        model = self.skeleton(super().config(Task.SINGLE_LABEL, ["a", "b"]))
        for name, module in model.named_modules():
            if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None:
                return limit - module.padding_idx - 1
        return limit
