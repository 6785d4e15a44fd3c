"""Push a run to the Hub: an allow-list of files, in one commit, compared with the local ones afterwards."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

from hftl.errors import UserError
from hftl.hub.commit import Pushed, Upload, check_can_push, check_repo_id, commit_files

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
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
)
PLACEHOLDER = "PATH_OR_REPO_ID"


def uploads_of(run: Path, repo_id: str) -> list[Upload]:
    """The files of a run that are pushed: its adapter if it has one, else its model.

    Args:
        run: a run's folder, or a folder with a model or an adapter.
        repo_id: where they go; the card's example names it.

    Raises:
        UserError: there is no finished run or model, or a file is a link.
    """
    folder = _model_folder(run)
    paths = sorted(p for p in folder.rglob("*") if p.is_file() or p.is_symlink())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    allowed = {name: path for name, path in names.items() if is_ours(name)}
    if not any(name.endswith(".safetensors") for name in allowed):
        raise UserError(f"{folder} holds no weights in safetensors, so there is nothing to push")
    if "adapter_config.json" in allowed:
        _check_base(allowed["adapter_config.json"])
    for name, path in allowed.items():
        if path.is_symlink() or folder.resolve() not in path.resolve().parents:
            raise UserError(
                f"{folder}: {name} is a link, and only files of the run itself are pushed; put the file there"
            )
    return [_upload(name, path, repo_id) for name, path in allowed.items()]


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
    return any(fnmatchcase(name, pattern) for pattern in ALLOWED)


def _model_folder(run: Path) -> Path:
    if not run.is_dir():
        raise UserError(f"no folder {str(run)!r}: give the folder of a run, as `hftl run` prints it")
    if (run / "recipe.json").exists():
        if not (run / "metrics.json").exists():
            raise UserError(f"{run} is a run that was not finished; finish it before it is pushed")
        return run / "adapter" if (run / "adapter").is_dir() else run / "model"
    if (run / "adapter_config.json").exists() or (run / "config.json").exists():
        return run
    raise UserError(f"{run} is neither a run of hftl nor a model's folder")


def _upload(name: str, path: Path, repo_id: str) -> Upload:
    if name != "README.md":
        return Upload(name, path, path.stat().st_size)
    content = path.read_bytes().replace(f'"{PLACEHOLDER}"'.encode(), f'"{repo_id}"'.encode())
    return Upload(name, content, len(content))


def push(
    run: Path,
    repo_id: str,
    *,
    public: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
) -> Pushed:
    """Push a run to the Hub in one commit.

    Files of an earlier push that this run does not have are removed in the same commit; files of other kinds stay.

    Args:
        run: a run's folder, or a folder with a model or an adapter.
        repo_id: ``user/name``; made if it is not there.
        public: make it public, if it is made; else only its owner sees it.
        create_pr: open a pull request instead of committing.
        revision: the branch to commit to, made if it is not there; the main one if not given.

    Raises:
        UserError: there is nothing to push, no token, or no right to push there.
        HubError: the Hub cannot be reached or goes on failing, or what it holds afterwards is not what was pushed.
    """
    check_can_push(repo_id)
    return commit_files(
        repo_id, uploads_of(run, repo_id), is_ours, public=public, create_pr=create_pr, revision=revision
    )
