"""Where a backbone's files are: a folder, or a commit of a Hub repository brought to a folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from hftl.errors import BackboneError
from hftl.hub import hub_errors

# Weights in safetensors only, and what configuration, tokenizers and processors are stored in.
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
UNWANTED = ["onnx/*", "openvino/*", "coreml/*", "original/*", "checkpoint-*/*", "runs/*"]
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Source:
    """The files of a pretrained model.

    Attributes:
        id: the Hub id, or the folder's name.
        folder: where the files are.
        commit: the resolved commit for a Hub repository; None for a folder, which is identified by its contents.
    """

    id: str
    folder: Path
    commit: str | None = None

    def weight_files(self) -> dict[str, Path]:
        """Each tensor's name in the checkpoint and the safetensors file that holds it.

        Raises:
            BackboneError: there are no safetensors weights, or a listed file is missing.
        """
        from safetensors import SafetensorError, safe_open

        index = self.folder / f"{WEIGHTS}.index.json"
        single = self.folder / WEIGHTS
        if index.exists() and not single.exists():
            names = json.loads(index.read_text())["weight_map"]
            files = {name: self.folder / Path(file).name for name, file in names.items()}
        elif single.exists():
            try:
                with safe_open(single, framework="pt") as opened:
                    files = dict.fromkeys(opened.keys(), single)
            except SafetensorError as error:
                raise BackboneError(f"{self.id}: {WEIGHTS} is damaged ({error}); fetch it again") from error
        else:
            raise BackboneError(
                f"{self.id} has no {WEIGHTS}; hftl reads safetensors only: convert it once with "
                "AutoModel.from_pretrained(…).save_pretrained(FOLDER) and give that folder"
            )
        missing = sorted({file.name for file in files.values() if not file.exists()})
        if missing:
            raise BackboneError(f"{self.id}: {missing[0]} is named by {index.name} but missing")
        return files


def local(folder: Path) -> Source:
    """A folder that transformers can load.

    Raises:
        BackboneError: it holds no ``config.json``.
    """
    folder = folder.expanduser().resolve()
    if not (folder / "config.json").exists():
        raise BackboneError(f"folder {folder.name!r} holds no config.json, so it is no transformers model")
    return Source(folder.name, folder)


def is_hub_id(ref: str) -> bool:
    """Whether a reference is shaped like ``name``, ``user/name`` or either with ``@revision``."""
    return re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?(@[\w.\-/]+)?", ref) is not None


def from_hub(ref: str, *, offline: bool = False) -> Source:
    """Bring a Hub repository's configuration, preprocessing files and safetensors weights to the local cache.

    Args:
        ref: ``user/name`` or ``user/name@revision``.
        offline: use only what the cache holds.

    Raises:
        BackboneError: unknown, private or gated, or not reachable and not in the cache.
    """
    from huggingface_hub import snapshot_download

    repo, _, revision = ref.partition("@")
    with hub_errors(repo, "backbone", BackboneError):
        folder = Path(
            snapshot_download(
                repo,
                revision=revision or None,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
                local_files_only=offline,
                library_name="hftl",
            )
        )
    if not (folder / "config.json").exists():
        raise BackboneError(f"{repo} on the Hub holds no config.json, so it is no transformers model")
    return Source(repo, folder, commit=folder.name)
