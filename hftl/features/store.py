"""The feature store: features that were computed once, kept by what they are features of.

    <root>/features/<label>-<first 16 digits of the id>/     one folder for each feature space

`docs/store.md` tells the format and what is guaranteed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from hftl.features.files import FILES, Files
from hftl.features.identity import JSON, space_id
from hftl.features.shard import ColumnSpec
from hftl.features.space import MissingRowsError, NonFiniteError, Space
from hftl.features.values import Ragged

__all__ = [
    "ColumnSpec",
    "FeatureStore",
    "MissingRowsError",
    "NonFiniteError",
    "Ragged",
    "Space",
    "cache_root",
]


def cache_root() -> Path:
    """Where hftl keeps what it computed: $HFTL_CACHE, else $XDG_CACHE_HOME/hftl, else ~/.cache/hftl.

    The folder is created at the first write, readable by its owner only (0700). One that exists keeps its
    mode, and everything in it follows: a folder with group permissions is a store that the group shares.
    """
    if value := os.environ.get("HFTL_CACHE"):
        return Path(value).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "hftl"


class FeatureStore:
    """All feature spaces under one folder.

    Args:
        root: the folder, usually `cache_root()`.
        files: the file calls that commits use.
    """

    def __init__(self, root: Path, files: Files = FILES) -> None:
        self.root = Path(root).absolute()
        self._files = files

    def space(self, identity: Mapping[str, JSON], label: str) -> Space:
        """Open the space of ``identity``, which need not exist yet; nothing is written before `Space.create`.

        Args:
            identity: everything that can change a feature.
            label: a name for people, such as the model's id; part of the folder's name, not of the identity.

        Raises:
            StoreError: the space cannot be read, or was written by a newer version.
        """
        digits = space_id(identity)[:16]
        existing = sorted(self._folder.glob(f"*-{digits}")) if self._folder.is_dir() else []
        path = existing[0] if existing else self._folder / f"{_slug(label)}-{digits}"
        return Space(path, identity, label, self._files, self._mode())

    @property
    def _folder(self) -> Path:
        return self.root / "features"

    def _mode(self) -> int:
        try:
            return stat.S_IMODE(self.root.stat().st_mode)
        except OSError:
            return 0o700


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.")[:80].lower() or "space"
