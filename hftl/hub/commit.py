"""One commit to a repository of the Hub: made where others commit too, and compared with the local files afterwards."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha1, sha256
from pathlib import Path
from typing import BinaryIO, cast

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetInfo,
    HfApi,
    ModelInfo,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx, validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import sha_fileobj

from hftl._version import __version__
from hftl.errors import HftlError, HubError, UserError
from hftl.hub.client import answer_in, causes, connection_lost, explain, hub_api, offline, with_retries

# Somebody else made a commit first, or is making one.
RACES = frozenset({409, 412})
# Something between us and the Hub answered; whether the Hub did what was asked is not known.
UNSURE = frozenset({500, 502, 504})
MOST_CONFLICTS = 6
CHUNK = 1 << 16


@dataclass(frozen=True)
class Repo:
    """A repository of the Hub.

    Attributes:
        id: ``user/name``.
        type: ``"model"`` or ``"dataset"``.
    """

    id: str
    type: str

    def url(self, api: HfApi) -> str:
        """Its page."""
        return f"{api.endpoint}/{'' if self.type == 'model' else 'datasets/'}{self.id}"


class Addition(CommitOperationAdd):
    """A file to add to a repository that tells how many more bytes of it were sent.

    Attributes:
        sent: is told.
        counted: how many it was told of.
    """

    sent: Callable[[int], None] = staticmethod(lambda _: None)
    counted = 0

    def reached(self, position: int) -> None:
        """Tell of what was sent up to a position; what is sent again, because it failed, counts once."""
        more = position - self.counted
        if more > 0:
            self.counted = position
            self.sent(more)

    @contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        """The content to read; the client asks for its own progress where it is what is being sent."""
        with super().as_file() as file:
            yield cast(BinaryIO, _SentFile(file, self.reached)) if with_tqdm else file


class _SentFile(io.RawIOBase):
    """A file that tells how far it was read; a file to the client too, which goes back in it before it tries again."""

    def __init__(self, file: BinaryIO, reached: Callable[[int], None]) -> None:
        self._file, self._reached = file, reached

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self._reached(self._file.tell())
        return block

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def __iter__(self) -> Iterator[bytes]:
        return iter(partial(self.read, CHUNK), b"")


@dataclass(frozen=True)
class Upload:
    """A file to push.

    Attributes:
        path: in the repository.
        content: the local file, or what stands in its place.
        size: bytes.
        new: nothing else may stand there: whoever put it there meanwhile meant something else.
    """

    path: str
    content: Path | bytes
    size: int
    new: bool = False

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

    def operation(self, sent: Callable[[int], None]) -> Addition:
        """As an operation of a commit, which serves only once and says what was sent."""
        made = Addition(self.path, self.content)
        made.sent = sent
        made.upload_info.sha256 = bytes.fromhex(self.sha256)
        return made


@dataclass(frozen=True)
class Pushed:
    """What a push left on the Hub.

    Attributes:
        url: of the commit or of the pull request; of the repository where no pull request was needed.
        commit: the hash of the commit that holds the files.
        uploads: the files of the repository that came from here.
        notes: what a person should know.
        changed: whether a commit was made; False where everything was there already.
    """

    url: str
    commit: str
    uploads: list[Upload]
    notes: list[str]
    changed: bool = True


def commit_files(
    repo_id: str,
    uploads: Sequence[Upload],
    owns: Callable[[str], bool],
    *,
    public: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    sent: Callable[[int], None] = lambda _: None,
    repo_type: str = "model",
) -> Pushed:
    """Put files into a repository in one commit.

    Args:
        repo_id: ``user/name``; made if it is not there.
        uploads: the files.
        owns: whether a file of the repository is one that a commit may clear away if it is not among the uploads.
        public: make the repository public, if it is made; else only its owner sees it.
        create_pr: open a pull request instead of committing.
        revision: the branch to commit to, made if it is not there; the main one if not given.
        sent: is told how many more bytes were sent, or are there already.
        repo_type: ``"model"`` or ``"dataset"``.

    Raises:
        UserError: no token, or no right to push there.
        HubError: the Hub cannot be reached or goes on failing, or what it holds afterwards is not what was pushed.
    """
    api, repo = hub_api(), Repo(repo_id, repo_type)
    try:
        notes = [] if create_pr else _prepare(api, repo, public, revision)
        commit, before = with_retries(
            lambda: _commit(api, repo, uploads, owns, create_pr, revision, sent=sent),
            races=RACES,
        )
        differing = _differing(api, repo, uploads, commit.oid)
    except HftlError:
        raise
    except Exception as error:
        _raise_ours(error, repo)
        raise
    if differing:
        raise HubError(
            f"pushed to {repo_id!r}, but {len(differing)} files, {differing[0]} among them, "
            "are not there as they are here: push again"
        )
    changed = commit.oid != before
    if create_pr and not commit.pr_url:
        notes = [*notes, "nothing differs from what is there, so no pull request was opened"]
        return Pushed(repo.url(api), commit.oid, list(uploads), notes, changed)
    return Pushed(commit.pr_url or commit.commit_url, commit.oid, list(uploads), notes, changed)


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


def _prepare(api: HfApi, repo: Repo, public: bool, branch: str | None) -> list[str]:
    """Make the repository and the branch where they are missing; what a person should know of it."""
    there = repo_info(api, repo)
    if there is None:
        # Nothing there, or nothing that this token may see; the answer to this tells.
        made = partial(api.create_repo, repo.id, private=not public, repo_type=repo.type)
        _make(made, lambda: repo_info(api, repo))
    if branch is not None and repo_info(api, repo, branch) is None:
        branched = partial(api.create_branch, repo.id, branch=branch, repo_type=repo.type)
        _make(branched, lambda: repo_info(api, repo, branch))
    if there is None or bool(there.private) != public:
        return []
    stays, other = ("private", "public") if there.private else ("public", "private")
    return [f"{repo.id} was there already and stays {stays}; its settings page makes it {other}"]


def _make(make: Callable[[], object], there: Callable[[], object]) -> None:
    """Make a repository or a branch, unless somebody else just did.

    The client's own ``exist_ok`` takes status 409 for proof that it is there, but the Hub also answers so while it is
    busy with another request of the same user.
    """

    def make_once() -> None:
        try:
            make()
        except HfHubHTTPError as error:
            if error.response.status_code != 409 or there() is None:
                raise

    with_retries(make_once, races=frozenset({409}), most_races=MOST_CONFLICTS)


def repo_info(api: HfApi, repo: Repo, revision: str | None = None) -> ModelInfo | DatasetInfo | None:
    """What the Hub says of a repository; None where there is none that this token may see."""
    try:
        return cast(
            "ModelInfo | DatasetInfo",
            with_retries(lambda: api.repo_info(repo.id, repo_type=repo.type, revision=revision)),
        )
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        if isinstance(error, GatedRepoError):
            raise
        return None


def files_of(api: HfApi, repo: Repo, revision: str | None) -> dict[str, RepoFile]:
    """The files of a commit, by their paths."""
    tree = api.list_repo_tree(repo.id, revision=revision, recursive=True, repo_type=repo.type)
    return {file.path: file for file in tree if isinstance(file, RepoFile)}


def _commit(
    api: HfApi,
    repo: Repo,
    uploads: Sequence[Upload],
    owns: Callable[[str], bool],
    create_pr: bool,
    revision: str | None,
    *,
    sent: Callable[[int], None],
) -> tuple[CommitInfo, str | None]:
    """Commit on what is the head now, which is returned too; fails with status 412 if somebody else was faster.

    Safe to do again: where a commit's answer was lost, there is nothing left to change.
    """
    head = api.repo_info(repo.id, repo_type=repo.type, revision=revision).sha
    there = files_of(api, repo, head)
    for upload in uploads:
        if upload.new and upload.path in there and not _same(upload, there[upload.path]):
            raise HubError(f"push to {repo.id!r}: somebody else put {upload.path} there meanwhile; push again")
    additions = [upload.operation(sent) for upload in uploads]
    kept = {addition.path_in_repo for addition in additions}
    deletions = [CommitOperationDelete(path) for path in there if owns(path) and path not in kept]
    # Before the commit, because what was uploaded once is not uploaded again, whatever happens to the commit.
    api.preupload_lfs_files(
        repo.id, additions, revision=revision, create_pr=create_pr, free_memory=False, repo_type=repo.type
    )
    for addition in additions:
        # Small files go with the commit, and what the Hub had already is not sent.
        addition.reached(addition.upload_info.size)
    try:
        made = api.create_commit(
            repo.id,
            [*additions, *deletions],
            repo_type=repo.type,
            commit_message=f"Push with hftl {__version__}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=head,
        )
    except Exception as error:
        answered = answer_in(error)
        if create_pr and (connection_lost(error) if answered is None else answered.response.status_code in UNSURE):
            # Doing it again might open a second one.
            page = f"{repo.url(api)}/discussions"
            raise HubError(f"the answer to the pull request got lost; see at {page} whether it is there") from error
        raise
    return made, head


def _differing(api: HfApi, repo: Repo, uploads: Sequence[Upload], commit: str) -> list[str]:
    """Files that the commit does not hold as they are here."""
    there = with_retries(lambda: files_of(api, repo, commit))
    return [upload.path for upload in uploads if not _same(upload, there.get(upload.path))]


def _same(upload: Upload, file: RepoFile | None) -> bool:
    if file is None or file.size != upload.size:
        return False
    return file.lfs.sha256 == upload.sha256 if file.lfs else file.blob_id == upload.git_oid()


def _raise_ours(error: Exception, repo: Repo) -> None:
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
        why = explain(error, repo.id, repo.type, "push again: what was uploaded is not uploaded twice")
    if why is None:
        return
    kind = UserError if status in (400, 401, 403, 404) else HubError
    raise kind(f"push to {repo.id!r} {why}") from error
