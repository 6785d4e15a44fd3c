"""Weights of a Hub repository that has only a pickle: read as nothing but tensors, and kept as safetensors."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import cached_assets_path
from safetensors.torch import save_file
from torch import Tensor

from hftl.backbones.files import PICKLE, WEIGHTS, listed_files
from hftl.errors import BackboneError
from hftl.wording import printable


def converted(repo: str, folder: Path) -> Path:
    """A folder of the same model with its weights in safetensors, converted once and kept in the Hub's cache of assets.

    A commit names the pickle's bytes, so it names what was made of them too.

    Args:
        repo: the Hub repository.
        folder: its files, ``pytorch_model.bin`` or its shards among them, in the folder of their commit.

    Raises:
        BackboneError: there is no pickle either, or it holds something other than tensors.
    """
    kept = cached_assets_path("hftl", namespace="converted", subfolder=f"{repo.replace('/', '--')}@{folder.name}")
    if not (kept / WEIGHTS).exists():
        tensors = _tensors(repo, folder)
        with tempfile.TemporaryDirectory(dir=kept) as temporary:
            for file in folder.iterdir():
                if file.is_file() and not file.name.startswith("pytorch_model"):
                    shutil.copyfile(file, kept / file.name)
            save_file(tensors, Path(temporary) / WEIGHTS, metadata={"format": "pt"})
            # Last, and whole or not at all: where it stands, everything does.
            (Path(temporary) / WEIGHTS).replace(kept / WEIGHTS)
    return kept


def _tensors(repo: str, folder: Path) -> dict[str, Tensor]:
    index = folder / f"{PICKLE}.index.json"
    files = set(listed_files(repo, index).values()) if index.exists() else {folder / PICKLE}
    tensors: dict[str, Tensor] = {}
    for file in sorted(files):
        if not file.exists():
            raise BackboneError(f"{repo} has neither {WEIGHTS} nor {file.name}, so there are no weights to read")
        try:
            read = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            why = printable(error).split(". ")[0]
            raise BackboneError(
                f"{repo}: {file.name} does not hold just tensors and is not read ({why[:150]})"
            ) from error
        if not (isinstance(read, dict) and all(isinstance(value, Tensor) for value in read.values())):
            raise BackboneError(f"{repo}: {file.name} is no table of tensors")
        # Cloned, because safetensors does not store tied tensors that share their memory.
        tensors |= {name: value.contiguous().clone() for name, value in read.items()}
    return tensors
