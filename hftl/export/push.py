"""Push a run to the Hub: an allow-list of files, in one commit, compared with the local ones afterwards."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import sha1, sha256
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    get_token,
)
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx, validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import sha_fileobj

from hftl import __version__
from hftl.errors import HftlError, HubError, UserError
from hftl.hub import answer_in, causes, connection_lost, explain, hub_api, offline, with_retries

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
# Somebody else made a commit first, or is making one.
RACES = frozenset({409, 412})
# Something between us and the Hub answered; whether the Hub did what was asked is not known.
UNSURE = frozenset({500, 502, 504})


@dataclass(frozen=True)
class Upload:
    """A file to push.

    Attributes:
        path: in the repository.
        content: the local file, or what stands in its place.
        size: bytes.
    """

    path: str
    content: Path | bytes
    size: int

    @cached_property
    def sha256(self) -> str:
        """As the Hub names a large file."""
        if isinstance(self.content, bytes):
            return sha256(self.content).hexdigest()
        with self.content.open("rb") as file:
            return sha_fileobj(file).hex()

    def git_oid(self) -> str:
        """As the Hub names any other file: git's name of a blob."""
        content = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def operation(self) -> CommitOperationAdd:
        """As an operation of a commit, which serves only once."""
        made = CommitOperationAdd(self.path, self.content)
        made.upload_info.sha256 = bytes.fromhex(self.sha256)
        return made


@dataclass(frozen=True)
class Pushed:
    """What a push left on the Hub.

    Attributes:
        url: of the commit, or of the pull request.
        commit: its hash.
        uploads: the files of the repository that came from here.
        notes: what a person should know.
    """

    url: str
    commit: str
    uploads: list[Upload]
    notes: list[str]


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
    uploads = uploads_of(run, repo_id)
    api = hub_api()
    try:
        notes = [] if create_pr else _prepare(api, repo_id, public, revision)
        commit = with_retries(lambda: _commit(api, repo_id, uploads, create_pr, revision), races=RACES)
        differing = _differing(api, repo_id, uploads, commit.oid)
    except HftlError:
        raise
    except Exception as error:
        _tell(error, repo_id)
        raise
    if differing:
        raise HubError(
            f"pushed to {repo_id!r}, but {len(differing)} files, {differing[0]} among them, "
            "are not there as they are here: push again"
        )
    return Pushed(commit.pr_url or commit.commit_url, commit.oid, uploads, notes)


def check_can_push(repo_id: str) -> None:
    """Refuse early what cannot end well.

    Raises:
        UserError: the name is none, there is no token, or the Hub must not be asked.
    """
    check_repo_id(repo_id)
    if offline():
        raise UserError(f"cannot push to {repo_id!r}: offline mode is on (HF_HUB_OFFLINE)")
    if get_token() is None:
        raise UserError(f"cannot push to {repo_id!r} without a token: log in with `hf auth login`, or set HF_TOKEN")


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        UserError: it is none.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name of a repository: write user/name, such as me/flowers") from error
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
        raise UserError(f"{repo_id!r} does not say whose repository it is: write user/name, such as me/flowers")


def _prepare(api: HfApi, repo_id: str, public: bool, branch: str | None) -> list[str]:
    """Make the repository and the branch where they are missing; what a person should know of it."""
    there = _info(api, repo_id)
    if there is None:
        # Nothing there, or nothing that this token may see; the answer to this tells.
        with_retries(lambda: api.create_repo(repo_id, private=not public, exist_ok=True))
    if branch is not None and _info(api, repo_id, branch) is None:
        with_retries(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True))
    if there is None or bool(there.private) != public:
        return []
    stays, other = ("private", "public") if there.private else ("public", "private")
    return [f"{repo_id} was there already and stays {stays}; its settings page makes it {other}"]


def _info(api: HfApi, repo_id: str, revision: str | None = None) -> ModelInfo | None:
    try:
        return with_retries(lambda: api.model_info(repo_id, revision=revision))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        if isinstance(error, GatedRepoError):
            raise
        return None


def _commit(api: HfApi, repo_id: str, uploads: Sequence[Upload], create_pr: bool, revision: str | None) -> CommitInfo:
    """Commit on what is the head now; fails with status 412 if somebody else commits in between.

    Safe to do again: a commit whose answer was lost is found to be there, for there is nothing left to change.
    """
    head = api.repo_info(repo_id, revision=revision).sha
    additions = [upload.operation() for upload in uploads]
    there = [
        file.path for file in api.list_repo_tree(repo_id, revision=head, recursive=True) if isinstance(file, RepoFile)
    ]
    kept = {upload.path for upload in uploads}
    deletions = [CommitOperationDelete(path) for path in there if is_ours(path) and path not in kept]
    # Before the commit, for what was uploaded once is not uploaded again, whatever happens to the commit.
    api.preupload_lfs_files(repo_id, additions, revision=revision, create_pr=create_pr, free_memory=False)
    try:
        return api.create_commit(
            repo_id,
            [*additions, *deletions],
            commit_message=f"Push with hftl {__version__}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,
        )
    except Exception as error:
        answered = answer_in(error)
        if create_pr and (connection_lost(error) if answered is None else answered.response.status_code in UNSURE):
            # Doing it again might open a second one.
            page = f"{api.endpoint}/{repo_id}/discussions"
            raise HubError(f"the answer to the pull request got lost; see at {page} whether it is there") from error
        raise


def _differing(api: HfApi, repo_id: str, uploads: Sequence[Upload], commit: str) -> list[str]:
    """Files that the commit does not hold as they are here."""
    tree = with_retries(lambda: list(api.list_repo_tree(repo_id, revision=commit, recursive=True)))
    there = {file.path: file for file in tree if isinstance(file, RepoFile)}
    return [upload.path for upload in uploads if not _same(upload, there.get(upload.path))]


def _same(upload: Upload, file: RepoFile | None) -> bool:
    if file is None or file.size != upload.size:
        return False
    return file.lfs.sha256 == upload.sha256 if file.lfs else file.blob_id == upload.git_oid()


def _tell(error: Exception, repo_id: str) -> None:
    """Raise what a person can use in place of a client's error, if it is one of the Hub's."""
    answered = answer_in(error)
    status = answered.response.status_code if answered else None
    if isinstance(answered, RepositoryNotFoundError) and not isinstance(answered, GatedRepoError):
        why: str | None = "found no such repository that your token may see: check the name, and `hf auth login`"
    elif answered is None and any(isinstance(cause, httpx.TransportError) for cause in causes(error)):
        why = f"failed: {constants.ENDPOINT} cannot be reached; push again when it can"
    elif status == 412:
        why = "lost every race: others commit there all the time; try again"
    else:
        why = explain(error, repo_id, "model", "push again: what was uploaded is not uploaded twice")
    if why is None:
        return
    kind = UserError if status in (400, 401, 403, 404) else HubError
    raise kind(f"push to {repo_id!r} {why}") from error
