"""The folder that a run leaves behind."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hftl.errors import UserError
from hftl.plugins import plugins


class RunFolder:
    """``recipe.json`` first, ``events.jsonl`` as things happen, ``metrics.json`` last: where that is, the run is
    complete.

    Args:
        path: the folder; made if missing.
        resume: go on with an unfinished run: its events are kept.

    Raises:
        UserError: a finished run, or something else, is already there.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        if (path / "metrics.json").exists():
            raise UserError(f"{path} holds a finished run; give another folder with --out, or remove it")
        if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "recipe.json").exists()):
            raise UserError(f"{path} exists and is no run of hftl; give another folder with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {path}: {error.strerror}; give another with --out") from error
        self.model = path / "model"
        if not resume:
            (path / "events.jsonl").unlink(missing_ok=True)
        self._started = time.monotonic()

    @classmethod
    def under(cls, root: Path, name: str) -> RunFolder:
        """A new folder ``root/name/<local time>``, numbered if two runs start in one second."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            path = root / name / f"{stamp}{suffix}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f"cannot make the folder {path}: {error.strerror}; give one with --out") from error
            return cls(path)
        raise UserError(f"{root / name} holds too many runs of one second; give a folder with --out")

    @classmethod
    def unfinished(cls, root: Path, name: str) -> RunFolder:
        """The newest folder of a recipe's run that began and did not finish.

        Raises:
            UserError: there is none.
        """
        begun = [path for path in sorted((root / name).glob("*")) if (path / "recipe.json").exists()]
        open_ = [path for path in begun if not (path / "metrics.json").exists()]
        if not open_:
            raise UserError(
                f"{root / name} holds no unfinished run to resume; leave out --resume, or give its folder with --out"
            )
        return cls(open_[-1], resume=True)

    def log(self, event: str, **values: Any) -> None:
        """Append one line to ``events.jsonl`` and tell the plugins."""
        line = {"event": event, "seconds": round(time.monotonic() - self._started, 4), **values}
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        plugins().tell("hftl_log", event=line)

    def write_json(self, name: str, value: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write one JSON file, whole or not at all."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(json.dumps(value, indent=2, default=str, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(self.path / name)

    def write_predictions(
        self,
        names: Sequence[str],
        labels: np.ndarray,
        probabilities: np.ndarray,
        label_names: Sequence[str],
        task: str,
    ) -> None:
        """Write ``predictions.parquet``, one line for each row reported on.

        Columns: ``row`` (its name), ``label`` (true), ``prediction``, ``score`` and ``scores`` (one for each label)
        for classes; lists of names for several labels at once; lists of targets for a regression.
        """
        columns: dict[str, Any] = {"row": list(names)}
        if task == "single_label":
            best = probabilities.argmax(1)
            columns["label"] = [label_names[int(i)] for i in labels]
            columns["prediction"] = [label_names[int(i)] for i in best]
            columns["score"] = probabilities[np.arange(len(best)), best]
            columns["scores"] = list(probabilities)
        elif task == "multi_label":
            columns["label"] = [[label_names[int(i)] for i in np.flatnonzero(row)] for row in labels]
            columns["prediction"] = [[label_names[int(i)] for i in np.flatnonzero(row > 0.5)] for row in probabilities]
            columns["scores"] = list(probabilities)
        else:
            columns["label"] = list(labels)
            columns["prediction"] = list(probabilities)
        pq.write_table(pa.table(columns), self.path / "predictions.parquet")
