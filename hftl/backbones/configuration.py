"""A checkpoint's configuration, read with care: it was written by others, and describes what memory is taken for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from transformers import AutoConfig

from hftl.backbones.source import Source
from hftl.errors import BackboneError
from hftl.wording import one_line

# A classifier has a name for each label; a file that states more than this was not made by one.
MOST_OUTPUTS = 1_000_000
# So many layers are built without a look at the weights: some architectures share one layer's tensors.
MOST_LAYERS = 2_000
COUNTS_LAYERS = re.compile(r"^(num|n)_.*(layers?|blocks?|experts|stages)$|(layers|n_layer|depths?|block_sizes)$")


def read_config(source: Source) -> Any:
    """A checkpoint's configuration.

    Raises:
        BackboneError: transformers does not know the architecture, or the file is damaged.
    """
    try:
        raw = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        labels = max(_counts_in(raw, "num_labels"), default=0)
        if labels > MOST_OUTPUTS:
            # transformers would make a name for each before anything else looks at them.
            raise BackboneError(f"{source.id}: its config.json names {labels:,} labels, which is no classifier's")
        kernel = next(_kernels(raw), None)
        if kernel is not None:
            raise BackboneError(
                f"{source.id} asks for the kernel {kernel!r} of the Hub, which is code that hftl does not run: take "
                "the line out of a copy of its config.json, and give that folder"
            )
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except BackboneError:
        raise
    # Classes of configurations check, derive and convert as they like.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise BackboneError(
                f"{source.id} needs Python code of its own repository, which hftl does not run; choose a model whose "
                "architecture transformers has, or write a plugin that loads it"
            ) from error
        raise BackboneError(f"{source.id}: {one_line(error)}") from error


def _counts_in(config: Any, key: str) -> Iterator[int]:
    """The integers under a key at any depth of a configuration."""
    if isinstance(config, dict):
        for name, value in config.items():
            if name == key and isinstance(value, int):
                yield value
            yield from _counts_in(value, key)


def check_layers(name: str, config: Any, tensors: int) -> None:
    """Refuse more layers than there could be tensors for, because each layer is made as Python objects.

    Raises:
        BackboneError: a number of layers is far above the number of tensors in the weights.
    """
    for key, value in _layer_counts(config.to_dict()):
        if value > max(MOST_LAYERS, tensors):
            raise BackboneError(
                f"{name}: its config.json says {key} = {value:,}, but its weights hold {tensors:,} tensors; "
                "they do not belong together: fetch it again"
            )


def _layer_counts(config: Any) -> Iterator[tuple[str, int]]:
    if isinstance(config, dict):
        for name, value in config.items():
            counts = value if isinstance(value, list) else [value]
            if isinstance(name, str) and COUNTS_LAYERS.search(name):
                yield from ((name, count) for count in counts if isinstance(count, int))
            yield from _layer_counts(value)


def _kernels(config: Any, asked: bool = False) -> Iterator[str]:
    """Hub repositories that ``attn_implementation`` and the like name at any depth: code that would be run."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _kernels(value, asked or "_implementation" in key)
    elif asked and isinstance(config, str) and "/" in config:
        yield config


def without_generation(config: Any) -> None:
    """Keep a decoder from returning its key/value cache, which no classifier reads."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "use_cache"):
            part.use_cache = False


def digest_text(text: str) -> str:
    """32 hex digits that name a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
