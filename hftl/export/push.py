"""Pushing a run to the Hub: an allow-list of files, in one commit, compared with the local ones afterwards."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hftl.backbones.files import ONNX, is_onnx_folder
from hftl.errors import HftlError, UserError
from hftl.hub.commit import Pushed, Upload, check_can_push, check_repo_id, commit_files
from hftl.progress import Progress
from hftl.runs.folder import RunFolder
from hftl.wording import listing, one_line

# Whatever else lies in the folder stays at home: optimizer states, logs, notes, credentials.
ALLOWED = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    # The modules of sentence-transformers, such as 1_Pooling and 2_Dense.
    "[0-9]_[A-Z]*/config.json",
    "[0-9]_[A-Z]*/model.safetensors",
    # The head beside a base model.
    "head.json",
    "head.safetensors",
    # Where the Hub's other libraries look for what `hftl export` wrote.
    "onnx/model.onnx",
    "onnx/model.onnx.data",
    "onnx/model_quantized.onnx",
)
# What a plugin may keep its preprocessing in; pushed where the run's record says that the export wrote it.
OF_PLUGINS = ("*.json", "*.txt", "*.model", "*.jinja")
CONFIGURATIONS = ("config.json", "adapter_config.json")
PLACEHOLDER = "PATH_OR_REPO_ID"


def uploads_of(run: Path, repo_id: str) -> tuple[list[Upload], list[str]]:
    """The files of a run that are pushed: its adapter if it has one, else its model and what is there of it as ONNX.

    Args:
        run: a run's folder, or a folder with a model or an adapter.
        repo_id: where they go; the card's example names it.

    Returns:
        The files to push, and the names of files of the export that stay at home.

    Raises:
        UserError: there is no finished run or model, or a file is a link.
        HftlError: a file is damaged.
    """
    folder, exported = _export(run)
    paths = sorted(p for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    allowed = {
        name: path
        for name, path in names.items()
        if is_ours(name) or (name in exported and _is_like(name, OF_PLUGINS) and not name.startswith("."))
    }
    if not any(name.endswith(".safetensors") for name in allowed):
        raise UserError(f"{folder} holds no weights in safetensors, so there is nothing to push")
    for name, path in allowed.items():
        if path.is_symlink() or folder.resolve() not in path.resolve().parents:
            raise UserError(
                f"{folder}: {name} is a link, and only files of the run itself are pushed; put the file there"
            )
        _check_content(path)
    if "adapter_config.json" in allowed:
        _check_base(allowed["adapter_config.json"])
    else:
        allowed |= _onnx_files(folder.resolve().parent)
    return [_upload(name, path, repo_id) for name, path in allowed.items()], sorted(exported - set(allowed))


def _onnx_files(run: Path) -> dict[str, Path]:
    """What `hftl export` made of a run's model, by the names that ONNX files have in a model's repository.

    Configuration and preprocessing are the model's own, which lie at the top.

    Raises:
        BackboneError: a file is not the one that was compared with the model.
        UserError: a file is a link.
    """
    if not RunFolder.is_run(run):
        return {}
    files: dict[str, Path] = {}
    for folder, name in (("onnx", ONNX), ("onnx-int8", "model_quantized.onnx")):
        if not is_onnx_folder(run / folder):
            continue
        # Brought only here: it brings torch.
        from hftl.export.onnx import check_exported

        check_exported(run / folder)
        files[f"onnx/{name}"] = run / folder / ONNX
    # The weights of a large model stand beside its file, which names them.
    data = run / "onnx" / f"{ONNX}.data"
    files |= {f"onnx/{data.name}": data} if f"onnx/{ONNX}" in files and data.is_file() else {}
    for path in files.values():
        if path.is_symlink():
            raise UserError(f"{path} is a link, and only files of the run itself are pushed; put the file there")
    return files


def _check_content(path: Path) -> None:
    """Refuse a file that nobody could read, whoever wrote it."""
    try:
        if path.suffix == ".safetensors":
            # Opening compares the header's sizes with the file's.
            with safe_open(path, framework="np"):
                pass
        elif path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if path.name in CONFIGURATIONS and not (isinstance(content, dict) and content):
                raise ValueError("it is empty")
    except (ValueError, RecursionError, SafetensorError) as error:
        raise HftlError(f"{path} is damaged ({one_line(error, 100)}), so it is not pushed: export it again") from error


def _check_base(config: Path) -> None:
    """Refuse an adapter that nobody else could load, and that would tell where this machine keeps its files."""
    base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    try:
        check_repo_id(str(base))
    except UserError as error:
        raise UserError(
            f"{config.parent}: the adapter's base model is not on the Hub, so nobody else could load it; "
            "push the merged model instead: hftl push RUN/model REPO_ID"
        ) from error


def is_ours(name: str) -> bool:
    """Whether a file of a repository is one that a push may write, or clear away if this run has none."""
    return _is_like(name, ALLOWED)


def _is_like(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path fits a pattern folder by folder; fnmatch alone lets a star stand for several."""
    parts = name.split("/")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for wanted in (pattern.split("/") for pattern in patterns)
    )


def _export(path: Path) -> tuple[Path, set[str]]:
    """The folder to push, and the files in it that a run's record says its export wrote, all of them undamaged."""
    if not path.is_dir():
        raise UserError(f"no folder {str(path)!r}: give the folder of a run, as `hftl run` prints it")
    if RunFolder.is_run(path):
        run = RunFolder.open(path)
        folder = run.adapter if run.adapter.is_dir() else run.model
    elif (path / "adapter_config.json").exists() or (path / "config.json").exists():
        folder = path.resolve()
        if not RunFolder.is_run(folder.parent):
            return path, set()
        run = RunFolder.open(folder.parent)
    else:
        raise UserError(f"{path} is neither a run of hftl nor a model's folder")
    return folder, run.check_files(folder)


def _upload(name: str, path: Path, repo_id: str) -> Upload:
    if name != "README.md":
        return Upload(name, path, path.stat().st_size)
    content = path.read_bytes().replace(f'"{PLACEHOLDER}"'.encode(), f'"{repo_id}"'.encode())
    return Upload(name, content, len(content))


def push(
    run: str | os.PathLike[str],
    repo_id: str,
    *,
    public: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    quiet: bool = True,
) -> Pushed:
    """Push a run to the Hub in one commit.

    Files of an earlier push that this run does not have are removed in the same commit; files of other kinds stay.

    Args:
        run: a run or its folder, or a folder with a model or an adapter.
        repo_id: ``user/name``; made if it is not there.
        public: make it public, if it is made; else only its owner sees it.
        create_pr: open a pull request instead of committing.
        revision: the branch to commit to, made if it is not there; the main one if not given.
        quiet: show no progress.

    Raises:
        UserError: there is nothing to push, no token, or no right to push there.
        HftlError: a file is damaged.
        HubError: the Hub cannot be reached or goes on failing, or what it holds afterwards is not what was pushed.
    """
    check_can_push(repo_id)
    uploads, left = uploads_of(Path(run).expanduser(), repo_id)
    with Progress("push", sum(upload.size for upload in uploads), quiet=quiet, unit="bytes") as progress:
        pushed = commit_files(
            repo_id,
            uploads,
            is_ours,
            public=public,
            create_pr=create_pr,
            revision=revision,
            sent=progress.advance,
        )
    return replace(pushed, notes=[*pushed.notes, *not_pushed(left)])


def not_pushed(names: Sequence[str]) -> list[str]:
    """What a person should know of the files that stay at home."""
    said = "the export wrote these too, and they are not pushed, because hftl does not know what they hold"
    return [f"{said}: {listing(names)}"] if names else []
