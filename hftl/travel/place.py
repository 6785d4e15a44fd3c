"""Places that a space is handed on at: a repository of the Hub, a folder, or whatever fsspec reaches."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hftl.errors import HftlError, HubError, UserError
from hftl.hub.client import hub_api, hub_errors, with_retries
from hftl.hub.commit import Pushed, Repo, Upload, check_can_push, check_repo_id, commit_files, files_of, repo_info
from hftl.store.files import FILE_CALLS, remove_orphans, write_atomically
from hftl.wording import named_error

PIECE = 1 << 20
WITHOUT_THE_HUB = "pull again when it can be reached: what arrived is kept"


@dataclass(frozen=True)
class State:
    """What a place holds.

    Attributes:
        files: bytes of each file by its path.
        commit: the commit that it is of; None where there are none.
    """

    files: Mapping[str, int]
    commit: str | None = None


class Place(Protocol):
    """Where a space is handed on."""

    @property
    def name(self) -> str:
        """What a person calls it."""

    def check(self) -> None:
        """Refuse early what cannot be written to.

        Raises:
            UserError: nobody could.
        """

    def look(self) -> State | None:
        """What it holds now; None where nothing is.

        Raises:
            HftlError: it cannot be read.
        """

    def fetch(self, path: str, folder: Path, state: State) -> Path:
        """Bring a file to a folder here; returns where it is.

        Raises:
            HftlError: it cannot be read.
        """

    def put(self, uploads: Sequence[Upload], *, public: bool, sent: Callable[[int], None]) -> Pushed:
        """Write files, in their order where that is not all at once.

        Raises:
            HftlError: it cannot be written.
        """


def place_of(text: str) -> Place:
    """The place that a person names.

    Args:
        text: ``user/name`` is a data set repository of the Hub; what begins with ``/``, ``./``, ``../`` or ``~`` a
            folder; ``s3://bucket/prefix`` and the like what fsspec reaches.

    Raises:
        UserError: it is none of them.
    """
    if folder := _folder_of(text):
        return FolderPlace(folder)
    return url_place(text) if "://" in text else HubPlace(_repo_of(text))


def place_name(text: str) -> str:
    """The name of `place_of`; nothing is reached for it, and what would reach it need not be installed.

    Raises:
        UserError: it is no place.
    """
    if folder := _folder_of(text):
        return str(folder)
    return _url_name(text) if "://" in text else _repo_of(text)


def without_password(text: str) -> str:
    """Text whose addresses name nobody who signs in, and no password: what is kept, printed or published of them."""
    return re.sub(r"(://)[^/\s]*@", r"\1", text)


def _folder_of(text: str) -> Path | None:
    if not re.match(r"(/|\.{1,2}([/\\]|$)|~|[A-Za-z]:[\\/])", text):
        return None
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"{text}: there is no such home folder; write the whole path") from error


def _repo_of(text: str) -> str:
    try:
        check_repo_id(text)
    except UserError as error:
        raise UserError(f"{error}; a folder is written ./features, a bucket s3://name/features") from error
    return text


def _url_name(url: str) -> str:
    shown = without_password(url)
    if url.startswith(("hf://", "https://", "http://")):
        raise UserError(
            f"{shown}: a data set repository of the Hub is written user/name; other web pages are read-only"
        )
    if url.startswith(("file://", "local://")):
        from fsspec.implementations.local import LocalFileSystem

        return str(Path(LocalFileSystem._strip_protocol(url.rstrip("/"))))
    return shown.rstrip("/")


@dataclass(frozen=True)
class HubPlace:
    """A data set repository of the Hub."""

    name: str

    def check(self) -> None:
        """See that there is a token, and that the Hub may be asked."""
        check_can_push(self.name)

    def look(self) -> State | None:
        """The main branch as it is now."""
        api, repo = hub_api(), Repo(self.name, "dataset")
        with hub_errors(self.name, "features", UserError, "dataset", WITHOUT_THE_HUB):
            info = repo_info(api, repo)
            if info is None:
                return None
            commit = info.sha
            files = with_retries(lambda: files_of(api, repo, commit))
        return State({path: file.size for path, file in files.items()}, commit)

    def fetch(self, path: str, folder: Path, state: State) -> Path:
        """Download a file of the commit that was looked at."""
        from huggingface_hub import hf_hub_download

        get: Callable[[], str] = partial(
            hf_hub_download, self.name, path, repo_type="dataset", revision=state.commit, local_dir=folder
        )
        with hub_errors(self.name, "features", UserError, "dataset", WITHOUT_THE_HUB):
            return Path(with_retries(get))

    def put(self, uploads: Sequence[Upload], *, public: bool, sent: Callable[[int], None]) -> Pushed:
        """In one commit; nothing that is there is removed."""
        return commit_files(self.name, uploads, lambda _: False, public=public, sent=sent, repo_type="dataset")


class FolderPlace:
    """A folder on this machine, or one that is mounted here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = str(folder)

    def check(self) -> None:
        """Any folder may be one that can be written to."""

    def look(self) -> State | None:
        """The files in it."""
        if not self.folder.exists():
            return None
        with self._named("read"):
            files = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*") if p.is_file()}
            return State({name: path.stat().st_size for name, path in files.items()})

    def fetch(self, path: str, folder: Path, state: State) -> Path:
        """Copy a file."""
        target = folder / Path(path).name
        with self._named("read"):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / path, target)
        return target

    def put(self, uploads: Sequence[Upload], *, public: bool, sent: Callable[[int], None]) -> Pushed:
        """One after the other, each of them whole or not there."""
        with self._named("write to"):
            # What a push left that was killed.
            for folder in {(self.folder / upload.path).parent for upload in uploads}:
                remove_orphans(folder)
            for upload in uploads:
                target = self.folder / upload.path
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(FILE_CALLS, target, _content_pieces(upload, sent), None)
        return Pushed(self.name, "", list(uploads), [], changed=bool(uploads))

    @contextmanager
    def _named(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot {action} {self.folder}: {error.strerror or named_error(error)}") from error


class FilesystemPlace:
    """A prefix of what fsspec reaches: a bucket, a server, the memory of this process."""

    def __init__(self, name: str, filesystem: Any, root: str) -> None:
        self.name = name
        self._fs = filesystem
        self._root = root

    def check(self) -> None:
        """Whether it can be written to shows when it is."""

    def look(self) -> State | None:
        """The objects below the prefix."""
        with self._named("read"):
            if not self._fs.exists(self._root):
                return None
            found: dict[str, Any] = self._fs.find(self._root, detail=True)
            return State({name[len(self._root) :].lstrip("/"): int(entry["size"]) for name, entry in found.items()})

    def fetch(self, path: str, folder: Path, state: State) -> Path:
        """Download an object."""
        target = folder / Path(path).name
        folder.mkdir(parents=True, exist_ok=True)
        with self._named("read"):
            self._fs.get_file(f"{self._root}/{path}", str(target))
        return target

    def put(self, uploads: Sequence[Upload], *, public: bool, sent: Callable[[int], None]) -> Pushed:
        """One after the other; what broke off has another size than it should, and is written again."""
        with self._named("write to"):
            for upload in uploads:
                target = f"{self._root}/{upload.path}"
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                if isinstance(upload.content, bytes):
                    self._fs.pipe_file(target, upload.content)
                else:
                    self._fs.put_file(str(upload.content), target)
                sent(upload.size)
        return Pushed(self.name, "", list(uploads), [], changed=bool(uploads))

    @contextmanager
    def _named(self, action: str) -> Iterator[None]:
        try:
            yield
        except HftlError:
            raise
        # Each file system raises its own, of libraries that are not known here.
        except Exception as error:
            raise HubError(f"cannot {action} {self.name}: {without_password(named_error(error))}") from error


def url_place(url: str) -> Place:
    """What fsspec reaches at an address.

    Raises:
        UserError: the address is none, or what reaches it is not installed.
    """
    from fsspec.core import url_to_fs

    name = _url_name(url)
    try:
        filesystem, root = url_to_fs(url.rstrip("/"))
    except Exception as error:  # a server may be asked by now, by a library that is not known here
        kind = UserError if isinstance(error, ImportError | ValueError) else HubError
        raise kind(f"{name} cannot be reached: {without_password(named_error(error))}") from error
    if "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)):
        return FolderPlace(Path(root))
    return FilesystemPlace(name, filesystem, root.rstrip("/"))


def _content_pieces(upload: Upload, sent: Callable[[int], None]) -> Iterator[bytes]:
    if isinstance(upload.content, bytes):
        yield upload.content
        sent(upload.size)
        return
    with upload.content.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece
            sent(len(piece))
