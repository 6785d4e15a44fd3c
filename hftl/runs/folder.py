"""`RunFolder`: the folder that a run leaves behind, written while it runs and read afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from hftl.errors import HftlError, UserError
from hftl.plugins.manager import plugins
from hftl.runs.record import RECORD, Metrics, RunRecord
from hftl.runs.writer import WriterLease, is_lease
from hftl.store.files import size_and_checksum, write_file
from hftl.tasks import Task
from hftl.wording import one_line

Model = TypeVar("Model", bound=BaseModel)

METRICS, EVENTS = "metrics.json", "events.jsonl"
PREDICTIONS = "predictions.parquet"
CARD = "README.md"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the operating system refuses to write, in one line that says where and what to do.

    Args:
        path: the file or folder that is written.

    Raises:
        HftlError: it cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # The store's advice is about its own folder, and safetensors hides the number of the error in its message.
        raise HftlError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or one_line(error)}; free some space there or see "
            "that you may write, and run again: stored features are reused, and fine-tuning goes on with --resume"
        ) from error


class RunFolder:
    """A run's folder: ``recipe.json`` first, ``events.jsonl`` as things happen, ``metrics.json`` last.

    Where ``metrics.json`` stands, the run is finished. `create`, `under` and `unfinished` give a folder to write to,
    `open` one to read.

    Attributes:
        path: the folder.
        model: where its model is.
        adapter: where its adapter is, if it was trained with LoRA.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model"
        self.adapter = path / "adapter"
        self._started = time.monotonic()
        self._lease: WriterLease | None = None

    # ── to write to ──────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def create(cls, path: Path, *, resume: bool = False) -> RunFolder:
        """A folder to write to, made if missing.

        Args:
            path: the folder.
            resume: go on with an unfinished run: its events are kept.

        Raises:
            UserError: a finished run, or something else, is already there, or another process writes there.
        """
        if cls.is_finished(path):
            raise UserError(f"{path} holds a finished run; give another folder with --out, or remove it")
        # A process that was killed as it began leaves only its lease.
        strange = path.is_dir() and not (path / RECORD).exists() and not all(map(is_lease, path.iterdir()))
        if path.is_file() or strange:
            raise UserError(f"{path} exists and is no run of hftl; give another folder with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lease = WriterLease(path)
        except OSError as error:
            raise UserError(f"cannot write to the folder {path}: {error.strerror}; give another with --out") from error
        folder = cls(path)
        folder._lease = lease
        if not resume:
            (path / EVENTS).unlink(missing_ok=True)
        return folder

    def release(self) -> None:
        """Let others write to the folder; its own process ends, or goes on to something else."""
        if self._lease is not None:
            self._lease.release()

    @classmethod
    def under(cls, root: Path, name: str) -> RunFolder:
        """A new folder ``root/name/<local time>``, numbered if two runs start in one second.

        Raises:
            UserError: it cannot be made.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
            path = root / name / f"{stamp}{suffix}"
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f"cannot make the folder {path}: {error.strerror}; give one with --out") from error
            return cls.create(path)
        raise UserError(f"{root / name} holds too many runs of one second; give a folder with --out")

    @classmethod
    def unfinished(cls, root: Path, name: str) -> RunFolder:
        """The newest folder of a recipe's run that began and did not finish.

        Raises:
            UserError: there is none.
        """
        begun = [path for path in sorted((root / name).glob("*")) if (path / RECORD).exists()]
        open_ = [path for path in begun if not cls.is_finished(path)]
        if not open_:
            raise UserError(
                f"{root / name} holds no unfinished run to resume; leave out --resume, or give its folder with --out"
            )
        return cls.create(open_[-1], resume=True)

    def log(self, event: str, **values: Any) -> None:
        """Append one line to ``events.jsonl`` and tell the plugins."""
        line = {"event": event, "seconds": round(time.monotonic() - self._started, 4), **values}
        with writing(self.path / EVENTS), (self.path / EVENTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
        plugins().tell("hftl_log", event=line)

    def write_json(self, name: str, value: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write one JSON file, whole or not at all."""
        text = json.dumps(value, indent=2, default=str, allow_nan=False) + "\n"
        with writing(self.path / name):
            write_file(self.path / name, text.encode())

    def write_record(self, record: RunRecord) -> None:
        """Write ``recipe.json`` and tell the plugins that the run begins."""
        content = record.as_json()
        self.write_json(RECORD, content)
        plugins().tell("hftl_run_start", recipe=content, folder=str(self.path))

    def write_metrics(self, metrics: Metrics) -> None:
        """Write ``metrics.json``, which makes the run a finished one, and tell the plugins that it ended."""
        content = metrics.as_json()
        self.write_json(METRICS, content)
        plugins().tell("hftl_run_end", metrics=content, folder=str(self.path))

    def seal(self, exported: Sequence[Path]) -> dict[str, str]:
        """Give the files of finished exports the permissions that new files have, and say what they are.

        Args:
            exported: folders in this one.

        Returns:
            Size and checksum of each file by its path in the run's folder; not of the card, because people edit it.
        """
        stamps = {}
        for folder in exported:
            # The card was written as any new file is; safetensors lets only the owner read what it writes.
            mode = (folder / CARD).stat().st_mode
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                path.chmod(mode)
                if path.name != CARD:
                    stamps[path.relative_to(self.path).as_posix()] = _stamp(path)
        return stamps

    def write_predictions(
        self,
        task: Task,
        rows: Sequence[str],
        labels: np.ndarray,
        scores: np.ndarray,
        label_names: Sequence[str],
        thresholds: Sequence[float] | None = None,
        *,
        abstain_below: float | None = None,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Write ``predictions.parquet``, one line for each row of the test split.

        Columns: ``row`` (its name), ``label`` (true), ``prediction``; for classes ``scores`` (one for each), and where
        a row has one label its ``score``. Several labels are lists of names, targets are lists of numbers; of sentences
        every column but ``row`` holds a list with one entry for each word.

        Args:
            task: what the labels are.
            rows: the rows' names.
            labels: (n,) class numbers, or (n, C); tags of sentences.
            scores: (n, C) float32, or (words, C), as `hftl.tasks.Task.scores` gives them.
            label_names: names of the C classes or targets.
            thresholds: of several labels; see `hftl.tasks.Task.predicted`.
            abstain_below: of one label a row, the score below which none is said; a column ``abstains`` then, beside
                the label that would have been.
            groups: the name of each row's group, where rows have one; a column ``group`` then.
        """
        predicted = task.predicted(scores, label_names, thresholds)
        columns: dict[str, Any] = {
            "row": list(rows),
            "label": task.truth(labels, label_names),
            "prediction": [list(row) for row in task.by_row(np.array(predicted), labels)]
            if task.of_words
            else predicted,
        }
        if task.unit.is_exclusive:
            columns["score"] = list(task.by_row(scores.max(1), labels))
        if abstain_below is not None:
            columns["abstains"] = scores.max(1).astype(np.float64) < abstain_below
        if task.has_classes:
            columns["scores"] = [row.tolist() for row in task.by_row(scores, labels)] if task.of_words else list(scores)
        if groups is not None:
            columns["group"] = list(groups)
        file = self.path / PREDICTIONS
        with writing(file):
            pq.write_table(pa.table(columns), file)

    # ── to read ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def is_finished(cls, path: Path) -> bool:
        """Whether a run in a folder came to its end."""
        return (path / METRICS).is_file()

    @classmethod
    def is_run(cls, path: Path) -> bool:
        """Whether a run began in a folder."""
        return (path / RECORD).is_file()

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A finished run's folder, to read.

        Raises:
            UserError: no run is there, or it did not finish.
        """
        if not path.is_dir():
            raise UserError(f"no folder {str(path)!r}: give the folder of a run, as `hftl run` prints it")
        if not cls.is_run(path):
            raise UserError(f"{path} is no run of hftl: it has no {RECORD}")
        if not (path / METRICS).is_file():
            raise UserError(f"{path} is a run that was not finished; finish it with --resume, or run it again")
        return cls(path)

    def record(self, file: str = RECORD) -> RunRecord:
        """What the run was made of.

        Args:
            file: the record's name, where it is a copy of another name.

        Raises:
            HftlError: the file is damaged.
        """
        return self._read(file, RunRecord)

    def metrics(self) -> Metrics:
        """What came out of it.

        Raises:
            HftlError: the file is damaged.
        """
        return self._read(METRICS, Metrics)

    def check_files(self, folder: Path) -> set[str]:
        """Compare the files of an export with what the run recorded when it wrote them.

        Args:
            folder: ``model`` or ``adapter``.

        Returns:
            Their names in the folder; none where the run is of a release that did not record them.

        Raises:
            HftlError: a file is missing, damaged or changed, or the record itself is damaged.
        """
        inside = f"{folder.name}/"
        recorded = {n: stamp for n, stamp in self.metrics().files.items() if n.startswith(inside)}
        for name, stamp in recorded.items():
            path = self.path / name
            there = _stamp(path) if path.is_file() else "nothing"
            if there != stamp:
                raise HftlError(
                    f"{path} is not what the run wrote ({there}, not {stamp}): run it again; if you changed it on "
                    f"purpose, copy {folder} to a place outside the run and use the copy"
                )
        return {name.removeprefix(inside) for name in recorded}

    def _read(self, name: str, kind: type[Model]) -> Model:
        path = self.path / name
        try:
            return kind.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            raise HftlError(f"{path} is damaged ({one_line(problem, 100)}); run it again") from error


def _stamp(path: Path) -> str:
    """A file's size and checksum."""
    size, checksum = size_and_checksum(path)
    return f"{size} bytes, xxh3_128 {checksum}"
