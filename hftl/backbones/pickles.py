"""Weights of a Hub repository that has only a pickle: read as nothing but tensors, and kept as safetensors."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from safetensors.torch import save_file
from torch import Tensor

from hftl.backbones.source import PICKLE, WEIGHTS, Source, listed_files
from hftl.errors import BackboneError
from hftl.text import printable


def converted(source: Source) -> Source:
    """The same model with its weights in safetensors, converted once and kept in huggingface_hub's cache of assets.

    A commit names the pickle's bytes, so it names what was made of them too.

    Args:
        source: a Hub repository's files, ``pytorch_model.bin`` or its shards among them.

    Raises:
        BackboneError: there is no pickle either, or it holds something other than tensors.
    """
    kept = cached_assets_path(
        "hftl", namespace="converted", subfolder=f"{source.id.replace('/', '--')}@{source.commit}"
    )
    if not (kept / WEIGHTS).exists():
        tensors = _tensors(source)
        with tempfile.TemporaryDirectory(dir=kept) as temporary:
            for file in source.folder.iterdir():
                if file.is_file() and not file.name.startswith("pytorch_model"):
                    shutil.copyfile(file, kept / file.name)
            save_file(tensors, Path(temporary) / WEIGHTS, metadata={"format": "pt"})
            # Last, and whole or not at all: where it stands, everything does.
            (Path(temporary) / WEIGHTS).replace(kept / WEIGHTS)
    return replace(source, folder=kept, pickled=True)


def _tensors(source: Source) -> dict[str, Tensor]:
    index = source.folder / f"{PICKLE}.index.json"
    files = set(listed_files(source, index).values()) if index.exists() else {source.folder / PICKLE}
    found: dict[str, Tensor] = {}
    for file in sorted(files):
        if not file.exists():
            raise BackboneError(f"{source.id} has neither {WEIGHTS} nor {file.name}, so there are no weights to read")
        try:
            read = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            why = printable(error).split(". ")[0]
            raise BackboneError(
                f"{source.id}: {file.name} does not hold just tensors and is not read ({why[:150]})"
            ) from error
        if not (isinstance(read, dict) and all(isinstance(value, Tensor) for value in read.values())):
            raise BackboneError(f"{source.id}: {file.name} is no table of tensors")
        # Cloned, for safetensors does not store tied tensors that share their memory.
        found |= {name: value.contiguous().clone() for name, value in read.items()}
    return found
