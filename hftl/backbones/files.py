"""The files that a checkpoint's weights lie in: their names, and what an index of shards lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hftl.errors import BackboneError

WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
PICKLE = "pytorch_model.bin"


def is_onnx_folder(folder: Path) -> bool:
    """Whether an ONNX file is a folder's model; where there are weights in safetensors, these are."""
    return (folder / ONNX).is_file() and not any(folder.glob("*.safetensors"))


def listed_files(model: str, index: Path) -> dict[str, Path]:
    """The tensors of a sharded checkpoint and their files, which can only be beside the index.

    Args:
        model: what a person calls it.
        index: the file that lists them.

    Raises:
        BackboneError: the index is damaged, or names a file elsewhere, which transformers would read.
    """
    try:
        names: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: Path(file) for name, file in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{model}: {index.name} is damaged ({error}); fetch it again") from error
    for file in files.values():
        if str(file) != file.name:
            raise BackboneError(f"{model}: {index.name} names {str(file)!r}, which is not in the model's folder")
    return {name: index.parent / file for name, file in files.items()}
