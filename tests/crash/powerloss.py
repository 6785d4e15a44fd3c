"""A power cut in slow motion: record what a writer does, then build what may be left after any prefix.

The model is POSIX at its least helpful. What a file holds is safe once the file was fsynced; before, any
part of it may be lost. A folder's entries (new files, renames, removals, new folders) are safe once the
folder was fsynced; before, each folder may have got any first part of them to the disk, whether or not the
files they name have their content.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hftl.store.files import FileCalls


class Recorder(FileCalls):
    """Does what it is asked, and keeps a list of it."""

    def __init__(self) -> None:
        self.log: list[tuple] = []
        self._paths: dict[int, Path] = {}

    def open(self, path, mode):
        fd = super().open(path, mode)
        self._paths[fd] = path
        self.log.append(("open", path))
        return fd

    def write(self, fd, data):
        size = super().write(fd, data[:500])  # in small pieces, as a busy disk may take them
        self.log.append(("write", self._paths[fd], bytes(data[:size])))
        return size

    def fsync(self, fd):
        self.log.append(("fsync", self._paths[fd]))

    def replace(self, source, target):
        super().replace(source, target)
        self.log.append(("rename", source, target))

    def place(self, source, target):
        super().place(source, target)
        self.log.append(("rename", source, target))

    def fsync_folder(self, path):
        self.log.append(("fsync_folder", path))

    def make_folder(self, path, mode):
        super().make_folder(path, mode)
        self.log.append(("make_folder", path))

    def unlink(self, path):
        super().unlink(path)
        self.log.append(("unlink", path))


@dataclass
class Inode:
    data: bytes = b""
    safe: bytes | None = None  # what the last fsync saw

    def after_the_cut(self, luck: str) -> bytes:
        if self.safe == self.data or luck == "all":
            return self.data
        return {
            "empty": self.safe or b"",
            "zeros": bytes(len(self.data)),
            "half": self.data[: len(self.data) // 2],
            "hole": self._with_a_hole(),  # blocks reach the disk in any order
        }[luck]

    def _with_a_hole(self) -> bytes:
        begin, end = len(self.data) * 6 // 10, len(self.data) * 7 // 10
        return self.data[:begin] + bytes(end - begin) + self.data[end:]


@dataclass
class Disk:
    """What is on the disk and what only waits to be: per folder, the safe entries and the changes to come."""

    safe: dict[Path, Inode | None] = field(default_factory=dict)  # None: a folder
    pending: dict[Path, list[dict[Path, Inode | str | None]]] = field(default_factory=dict)
    now: dict[Path, Inode | None] = field(default_factory=dict)

    def do(self, step: tuple) -> None:
        kind, path = step[:2]
        if kind == "open":
            self._change({path: Inode()})
        elif kind == "write":
            self.now[path].data += step[2]
        elif kind == "fsync":
            self.now[path].safe = self.now[path].data
        elif kind == "rename":
            self._change({step[2]: self.now[path], path: "gone"})
        elif kind == "unlink":
            self._change({path: "gone"})
        elif kind == "make_folder":
            if path not in self.now:
                self._change({path: None})
        elif kind == "fsync_folder":
            for change in self.pending.pop(path, []):
                _apply(self.safe, change)

    def _change(self, change: dict) -> None:
        """One atomic change to one folder's entries."""
        _apply(self.now, change)
        self.pending.setdefault(next(iter(change)).parent, []).append(change)

    def after_the_cut(self, lucks: list[str], random_: random.Random | None) -> dict[Path, bytes | None]:
        """Some state that the disk may be in: files and their content, folders as None."""
        left = dict(self.safe)
        for changes in self.pending.values():
            count = len(changes) if random_ is None else random_.randint(0, len(changes))
            for change in changes[:count]:
                _apply(left, change)
        pick = random_ or random.Random(0)
        return {p: None if i is None else i.after_the_cut(pick.choice(lucks)) for p, i in left.items()}


def _apply(entries: dict, change: dict) -> None:
    for path, inode in change.items():
        if inode == "gone":
            entries.pop(path, None)
        else:
            entries[path] = inode


def states(log: list[tuple], worst_only: bool = False) -> Iterator[tuple[int, dict[Path, bytes | None]]]:
    """For every prefix of ``log``, its length and states that a power cut may leave; the first is the worst."""
    disk = Disk()
    for length in range(len(log) + 1):
        if length:
            disk.do(log[length - 1])
        yield length, {p: i if i is None else i.after_the_cut("empty") for p, i in disk.safe.items()}
        if worst_only:
            continue
        for luck in ("empty", "zeros", "half", "hole", "all"):
            yield length, disk.after_the_cut([luck], None)
        for seed in range(3):
            yield length, disk.after_the_cut(["empty", "zeros", "half", "hole", "all"], random.Random(seed))


def build(state: dict[Path, bytes | None], source: Path, target: Path) -> None:
    """Make ``state`` real: what was under ``source`` appears under ``target``."""
    for path in sorted(state, key=lambda path: len(path.parts)):
        place = target / path.relative_to(source)
        if state[path] is None and place.parent.is_dir():
            place.mkdir()
    for path, data in state.items():
        place = target / path.relative_to(source)
        # A file whose folder did not reach the disk is out of reach.
        if data is not None and place.parent.is_dir():
            place.write_bytes(data)
