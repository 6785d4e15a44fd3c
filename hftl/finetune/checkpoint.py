"""Checkpoints of a training run: safetensors and JSON, whole or not at all, newest good one first.

A checkpoint is a folder ``step-00000012``. Its files are written into a hidden folder and flushed to disk;
``manifest.json`` with the size and hash of each comes last, and only then does the folder get its name. So a folder
with this name was once whole, and the manifest tells whether it still is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hftl.errors import HftlError, UserError
from hftl.store.files import FILE_CALLS, size_and_checksum
from hftl.wording import named_error, one_line, printable

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """What was read back.

    Attributes:
        step: the number of optimizer steps done.
        state: the JSON part.
        tensors: by file name without ending (``model``, ``optimizer``, ``ema``): named tensors on the CPU.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoints:
    """Where a run's checkpoints are, and what it is.

    Attributes:
        folder: where they are.
        made_with: the settings that the result depends on; each checkpoint records them, for a resume to compare.
    """

    folder: Path
    made_with: Mapping[str, Any]


class DamagedError(Exception):
    """A checkpoint is not what was written."""


def write_checkpoint(
    folder: Path, name: str, state: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]
) -> Path:
    """Write a checkpoint ``folder/name``, replacing one of the same name.

    Args:
        folder: where checkpoints are; made if missing.
        name: such as ``step-00000012``.
        state: plain JSON values.
        tensors: by file name without ending, named tensors.

    Raises:
        HftlError: it cannot be written; earlier ones are untouched.
    """
    temporary = folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for part, named in tensors.items():
            # Written from the tensors themselves: a copy of the optimizer's moments would be the run's peak of memory.
            save_file(dict(named), temporary / f"{part}.safetensors")
        (temporary / STATE).write_bytes(_json(state))
        manifest = {
            "format": FORMAT,
            "files": {file.name: _fingerprint_of(file) for file in sorted(temporary.iterdir())},
        }
        (temporary / MANIFEST).write_bytes(_json(manifest))
        for file in temporary.iterdir():
            _flush(file)
        # The files' names before the folder's, or a crash could leave a folder that looks whole and is empty.
        FILE_CALLS.fsync_folder(temporary)
        _rename(temporary, folder / name)
        FILE_CALLS.fsync_folder(folder)
    except (OSError, SafetensorError) as error:
        # Half a checkpoint helps nobody, least of all on a disk that is full.
        shutil.rmtree(temporary, ignore_errors=True)
        # safetensors hides the number of an error in its message.
        reason = getattr(error, "strerror", None) or one_line(error)
        raise HftlError(
            f"the checkpoint {folder / name} cannot be written: {reason}; earlier ones are whole: free some space "
            "there, or see that you may write, and go on with --resume"
        ) from error
    return folder / name


def step_name(step: int) -> str:
    """The folder of the checkpoint after so many steps."""
    return f"{PREFIX}{step:08d}"


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what an interrupted write left behind."""
    for stale in folder.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    for old in _newest_first(folder)[keep:]:
        # First the name goes, so that a removal cut short leaves nothing that looks like a checkpoint.
        hidden = folder / f".{old.name}.tmp"
        old.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def read_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole.

    Returns:
        The checkpoint, None if there never was one; and for each newer one that is damaged a line that says so.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    problems: list[str] = []
    for path in _newest_first(folder):
        outcome = _read_or_say(path)
        if isinstance(outcome, Checkpoint):
            return outcome, problems
        problems.append(outcome)
    if problems:
        raise UserError(f"{folder} holds no whole checkpoint ({'; '.join(problems)}); start anew without --resume")
    return None, []


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte.

    Raises:
        DamagedError: a file is missing, cut, or changed.
    """
    content = _content(path / MANIFEST)
    manifest = _parsed_json(path / MANIFEST, content)
    try:
        if _json(manifest) != content:
            raise DamagedError(f"{MANIFEST} is not what was written")
        if manifest["format"] != FORMAT:
            raise DamagedError(f"{MANIFEST} has format {one_line(manifest['format'], 20)}, not {FORMAT}")
        listed = dict(manifest["files"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is not a manifest") from error
    if STATE not in listed:
        raise DamagedError(f"{MANIFEST} does not list {STATE}")
    for file, described in listed.items():
        if Path(file).name != file or not (path / file).is_file():
            # A name that leads elsewhere; or a pipe, which would be waited for.
            raise DamagedError(f"{printable(file)} is no file of it")
        try:
            actual = _fingerprint_of(path / file)
        except OSError as error:
            raise DamagedError(f"{file} cannot be read: {error.strerror}") from error
        if actual != described:
            raise DamagedError(f"{file} is not what was written: {actual}, not {described}")
    state = _parsed_json(path / STATE, _content(path / STATE))
    try:
        tensors = {file.removesuffix(".safetensors"): load_file(path / file) for file in listed if file != STATE}
        return Checkpoint(int(state["step"]), state, tensors)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        # Hashes that somebody made to fit files that were never a checkpoint.
        raise DamagedError(f"it holds something else than a checkpoint ({named_error(error)})") from error


def _read_or_say(path: Path) -> Checkpoint | str:
    try:
        return read_checkpoint(path)
    except DamagedError as error:
        return f"checkpoint {path.name} is damaged and not used: {error}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob(f"{PREFIX}*") if path.is_dir()), reverse=True)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise DamagedError(f"{path.name} is no file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read: {error.strerror}") from error


def _parsed_json(path: Path, content: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} is no JSON") from error
    if not isinstance(parsed, dict):
        raise DamagedError(f"{path.name} is no JSON object")
    return parsed


def _fingerprint_of(path: Path) -> dict[str, Any]:
    size, checksum = size_and_checksum(path)
    return {"bytes": size, "xxh3_128": checksum}


def _rename(source: Path, target: Path) -> None:
    if target.exists():
        # A folder cannot replace one that is not empty; a step that was reached twice is the same step.
        old = target.with_name(f".{target.name}.old.tmp")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        source.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        source.rename(target)


def _flush(path: Path) -> None:
    """Have a file's content on the disk itself."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
