"""Copies of a model's folder with something changed, and a watch over what a loader opens."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def linked_copy(source: Path, target: Path) -> None:
    """A folder's copy whose weights are links: they are large, and only replaced whole."""
    for file in source.rglob("*"):
        copied = target / file.relative_to(source)
        if file.is_dir():
            continue
        copied.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            copied.symlink_to(file.resolve())
        else:
            copied.write_bytes(file.read_bytes())


def flip_last_byte(file: Path) -> None:
    """Change one byte of a file; where the file is a link, of a copy in its place."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    rewrite(file, bytes(content))


def rewrite(file: Path, content: bytes | None) -> None:
    """Replace a file, or remove it; what a link points to stays as it is."""
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)


def mutations(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Each JSON file beside ``config.json`` with one setting changed: the file, the setting, its new text."""
    for file in sorted(folder.glob("*.json")):
        if file.name in ("config.json", "model.safetensors.index.json"):
            continue
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            continue
        for name, value in settings.items():
            for other in _other_values(value):
                yield file, name, json.dumps({**settings, name: other})


def _other_values(value: Any) -> Iterator[Any]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value // 2 if isinstance(value, int) else value / 2, value + 1)
    elif isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
        yield [v / 2 for v in value]
    elif isinstance(value, dict) and value.get("vocab"):
        # A tokenizer's model: words trade places; special tokens, which other files name too, keep theirs.
        vocab = value["vocab"]
        if isinstance(vocab, dict):
            order = [word for word in sorted(vocab, key=vocab.__getitem__) if word[:1] not in ("[", "<")]
            ids = vocab | dict(zip(order, [vocab[name] for name in order[::-1]], strict=True))
            yield {**value, "vocab": ids}
    elif isinstance(value, dict) and value and all(isinstance(v, int) for v in value.values()):
        yield {name: v // 2 for name, v in value.items()}


class Opened(set[str]):
    """Names of files that were opened, and of classes that were unpickled."""

    def __init__(self) -> None:
        super().__init__()
        self.unpickled: set[str] = set()


_watching: list[Opened] = []
_hooked: list[bool] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(args[0], str | os.PathLike):
        _watching[-1].add(os.fspath(args[0]) if not isinstance(args[0], bytes) else "")
    elif event == "pickle.find_class":
        _watching[-1].unpickled.add(f"{args[0]}.{args[1]}")


@contextmanager
def opened_files() -> Iterator[Opened]:
    """Watch what Python opens and unpickles; the interpreter's audit hook cannot be removed, so it is set once."""
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    _watching.append(Opened())
    try:
        yield _watching[-1]
    finally:
        _watching.pop()
