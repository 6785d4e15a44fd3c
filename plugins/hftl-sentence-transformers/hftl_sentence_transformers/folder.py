"""What a sentence-transformers folder holds: its modules, their settings and weights, and its default prompt."""

from __future__ import annotations

import json
from typing import Any

import hftl

FIRST = "Transformer"


def fetched(ref: str, *, offline: bool) -> hftl.Source:
    """The files of a folder or a Hub repository, those of its modules included.

    Raises:
        BackboneError: it cannot be fetched, or is no sentence-transformers model.
    """
    source = hftl.Source.of(ref, offline=offline)
    if source.commit is not None and not offline:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        # hftl brings what transformers reads, which is all in the repository's root.
        patterns = ["*/config.json", "*/model.safetensors"]
        skipped = ["onnx/*", "openvino/*"]
        try:
            snapshot_download(source.id, revision=source.commit, allow_patterns=patterns, ignore_patterns=skipped)
        except (OSError, HfHubHTTPError) as error:
            why = " ".join(str(error).split())[:200]
            raise hftl.BackboneError(f"{source.id}: its modules cannot be fetched: {why}") from error
    check(source)
    return source


def check(source: hftl.Source) -> None:
    """Refuse what cannot be kept exactly.

    Raises:
        BackboneError: the folder is no sentence-transformers model, or has a module that is not supported.
    """
    for position, module in enumerate(modules(source)):
        kind = module["type"].rpartition(".")[2]
        if not module["type"].startswith("sentence_transformers."):
            raise hftl.BackboneError(f"{source.id}: its module {module['type']} is code of its own, which is never run")
        if (kind == FIRST) != (position == 0) or (position == 0 and module["path"]):
            raise hftl.BackboneError(
                f"{source.id}: its first module must be a Transformer in the root of the folder, not {kind} in "
                f"{module['path'] or 'it'}; load it with SentenceTransformer and save it anew, or take another model"
            )
        folder = source.folder / module["path"]
        if position and (folder / "pytorch_model.bin").exists() and not (folder / "model.safetensors").exists():
            raise hftl.BackboneError(
                f"{source.id}: the weights of {module['path']} are a pickle; load it with SentenceTransformer and "
                "save it anew, which writes safetensors"
            )
    if default_prompt(source) and not all(pool.get("include_prompt", True) for pool in settings(source).values()):
        raise hftl.BackboneError(f"{source.id}: its pooling leaves out the prompt, which hftl cannot do")


def modules(source: hftl.Source) -> list[dict[str, Any]]:
    """The modules in the order in which they run: ``type`` and ``path``.

    Raises:
        BackboneError: there is no readable ``modules.json``.
    """
    try:
        read: list[dict[str, Any]] = json.loads((source.folder / "modules.json").read_text(encoding="utf-8"))
        return [{"type": str(module["type"]), "path": str(module["path"])} for module in read]
    except FileNotFoundError as error:
        raise hftl.BackboneError(
            f"{source.id} has no modules.json, so it is no sentence-transformers model; give it without st:"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise hftl.BackboneError(f"{source.id}: modules.json is damaged ({error})") from error


def settings(source: hftl.Source) -> dict[str, dict[str, Any]]:
    """The settings of each module after the first, by its path."""
    return {module["path"]: read_json(source, f"{module['path']}/config.json") for module in modules(source)[1:]}


def default_prompt(source: hftl.Source) -> str:
    """What is put before each text unless another prompt is asked for."""
    config = read_json(source, "config_sentence_transformers.json")
    return str((config.get("prompts") or {}).get(config.get("default_prompt_name") or "") or "")


def read_json(source: hftl.Source, file: str) -> dict[str, Any]:
    """A JSON file of the folder; empty if there is none.

    Raises:
        BackboneError: it is damaged.
    """
    path = source.folder / file
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise hftl.BackboneError(f"{source.id}: {file} is damaged ({error})") from error
    return read
