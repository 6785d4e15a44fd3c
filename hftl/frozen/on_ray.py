"""Extraction on Ray's workers: Ray Data deals out the missing rows, and actors that hold the backbone read and store.

The rows are named, and those that are missing found, before Ray is asked at all; so a warm run starts nothing. What
a worker computed is committed with each block of rows: a worker that dies costs its block, which Ray gives to another.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from hftl.backbones.loading import for_words
from hftl.backbones.protocol import Target
from hftl.data import Files, Texts
from hftl.data.opening import read_regular, why_unreadable
from hftl.decoding.cores import take_share
from hftl.errors import BackboneError, BadRowError, DataError, HftlError, StoreError, UserError
from hftl.frozen.deal import Deal
from hftl.frozen.extract import ConcatRows, ExtractReport, extract, rows_to_compute
from hftl.frozen.features import spaces_beside
from hftl.frozen.recipe import backbone_of
from hftl.frozen.view import EQUAL_LENGTHS, View, equal_length_space, open_space
from hftl.parallel import Process, error_as_json, error_from_json, start_processes
from hftl.plugins.registry import backbone_claims
from hftl.plugins.spec import BackboneOptions
from hftl.progress import Progress
from hftl.recipes import Recipe
from hftl.runs.console import quiet_libraries
from hftl.store.digests import FilePart, digest_bytes
from hftl.store.shard import Digests
from hftl.store.space import Space
from hftl.store.store import FeatureStore
from hftl.tasks import Task
from hftl.wording import is_debugging, named_error, one_line, plural

# Rows of a block at most: a block is what a worker takes, commits, and loses when it is killed.
MOST_TEXTS, MOST_FILES = 8192, 1024
# Of every block but the last a multiple, so that batches on CPUs are those of one process.
FEWEST_ROWS = 64
# Blocks for each worker, so that none waits long for the last one.
BLOCKS_EACH = 4
SECONDS_TO_ANSWER = 10
# What the driver says of a file: where it is, in which part of what is there, or its bytes, or why it is none.
PLACE = {
    "path": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "content": pa.large_binary(),
    "bad": pa.string(),
}


def check_ray() -> None:
    """See that the library of the extra is here.

    Raises:
        UserError: it is not.
    """
    if find_spec("ray") is None:
        raise UserError("--on ray needs Ray: pip install 'hftl[ray]'")


@dataclass(frozen=True)
class Work:
    """What a worker is told, from which it makes the same backbone, views and spaces.

    Attributes:
        recipe: the backbone and the method; without data.
        options: of the backbone.
        task: what the labels are.
        label_names: their names.
        root: the folder of the store.
        views: what is kept of a row, with the identity of its space.
        on_bad_row: as of `extract`.
    """

    recipe: Recipe
    options: BackboneOptions
    task: Task
    label_names: list[str]
    root: Path
    views: dict[View, Mapping[str, Any]] = field(default_factory=dict)
    on_bad_row: str = "error"


@dataclass(frozen=True)
class RayExtractor:
    """Extracts as `hftl.frozen.extract.extract` does, on the workers of a Ray cluster, or of this machine.

    Attributes:
        recipe: the backbone and the method.
        options: of the backbone.
        task: what the labels are.
        label_names: their names.
    """

    recipe: Recipe
    options: BackboneOptions
    task: Task
    label_names: list[str]

    def __call__(
        self,
        target: Target,
        views: dict[View, Space],
        rows: ConcatRows,
        digests: Digests,
        process: Process,
        *,
        store: FeatureStore,
        beside: dict[View, Space] | None = None,
        quiet: bool = False,
        on_bad_row: str = "error",
        among: np.ndarray | None = None,
    ) -> ExtractReport:
        """As `extract`; the arguments are the same.

        Raises:
            HftlError: Ray fails, or a worker cannot do its work.
            StoreError: the workers' store is another one.
        """
        missing = rows_to_compute([~space.known(digests) for space in views.values()], digests, among)
        if not len(missing):
            # No row needs a worker; a space that is new is still to be made.
            return extract(target, views, rows, digests, process, store=store, beside=beside, quiet=quiet, among=among)
        work = Work(
            recipe=_without_data(self.recipe),
            options=self.options,
            task=self.task,
            label_names=self.label_names,
            root=store.root,
            views={view: space.identity for view, space in views.items()},
            on_bad_row=on_bad_row,
        )
        report = ExtractReport()
        with _ray_errors(), _started(), Progress("features", len(missing), quiet=quiet) as progress:
            for done, told in _results(work, rows, digests, missing, progress):
                if "error" in told:
                    raise error_from_json(told["error"])
                report.bad.update({row: BadRowError(name, why) for row, name, why in told["bad"]})
                report.rounding = max(report.rounding, told["rounding"])
                progress.advance(done)
        # A worker that died after it had committed told nothing of it.
        report.computed = len(missing) - len(report.bad)
        for spaces in (views, beside or {}):
            for view, space in spaces.items():
                spaces[view] = _reopened(store, space)
        good = np.setdiff1d(missing, list(report.bad))
        if lost := sum(int((~space.known(digests[good])).sum()) for space in views.values()):
            raise StoreError(
                f"{plural(lost, 'row')} that Ray's workers computed cannot be found in {store.root}: HFTL_CACHE must "
                "be a folder that all machines share"
            )
        return report


def _without_data(recipe: Recipe) -> Recipe:
    """The recipe's backbone and method; a folder by its full path, because workers stand elsewhere."""
    name = recipe.backbone
    if name not in backbone_claims() and (folder := Path(name).expanduser()).is_dir():
        name = str(folder.absolute())
    return Recipe(backbone=name, data="", method=recipe.method, depth=recipe.depth)


def _reopened(store: FeatureStore, space: Space) -> Space:
    """A space as the workers left it: where it was new, they may have found that its batches need equal lengths."""
    if space.info is not None:
        return space
    again = store.space(space.identity, space.label)
    return again if again.info is not None else equal_length_space(store, space)


# ── on the driver ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _started() -> Iterator[None]:
    """A connection to the Ray that is there (``RAY_ADDRESS``, or one that runs here), or one of this machine's own."""
    # Before Ray is imported: it would send statistics of use, and warn of what it will change.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not is_debugging():
        # Its core writes to the terminal by itself, past every logger.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    own = not ray.is_initialized()
    if own:
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        in_main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with nullcontext() if is_debugging() else _muted():
                ray.init(log_to_driver=is_debugging(), logging_level=logging.INFO, include_dashboard=False)
        except Exception as error:  # of many kinds, some without a class of their own
            raise HftlError(f"Ray cannot be started or reached: {one_line(named_error(error), 300)}") from error
        if in_main_thread:
            # Ray's own would end the command without a word.
            signal.signal(signal.SIGTERM, handler)
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = is_debugging()
    try:
        with _quiet_ray():
            yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before
        if own:
            ray.shutdown()


def _check_address(address: str) -> None:
    """See that a cluster answers at an address: Ray itself would try for minutes, without a word.

    Raises:
        HftlError: nothing answers.
    """
    written = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if written is None:
        return
    try:
        socket.create_connection((written[1], int(written[2])), SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise HftlError(f"RAY_ADDRESS={address}: no cluster answers there: {named_error(error)}") from error


@contextmanager
def _muted() -> Iterator[None]:
    """Keep what is written to standard error off the terminal: what goes wrong is raised."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Keep what Ray Data logs in the files of Ray's session, and off the terminal."""
    logger = logging.getLogger("ray.data")
    handlers = [each for each in logger.handlers if isinstance(each, logging.StreamHandler)]
    levels = [each.level for each in handlers]
    if not is_debugging():
        for each in handlers:
            each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, level in zip(handlers, levels, strict=True):
            each.setLevel(level)


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Tell in one line what Ray could not do."""
    try:
        yield
    except HftlError:
        raise
    except Exception as error:
        # Ray is imported by now, if the error is one of its.
        if not type(error).__module__.startswith("ray."):
            raise
        # What is wrong stands last: a worker's traceback comes before it.
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise HftlError(
            f"Ray failed ({type(error).__name__}): {one_line(lines[-1].strip(), 300)}; what was computed is kept: the "
            "same command goes on"
        ) from error


def _results(
    work: Work, rows: ConcatRows, digests: Digests, missing: np.ndarray, progress: Progress
) -> Iterator[tuple[int, dict[str, Any]]]:
    """For each block of missing rows how many they were, and what a worker told of them, as they are done."""
    import ray

    deal = Deal.of([node["Resources"] for node in ray.nodes() if node["Alive"]])
    workers = deal.workers
    most = MOST_TEXTS if isinstance(rows.parts[0], Texts) else MOST_FILES
    block = min(most, -(-len(missing) // (BLOCKS_EACH * workers * FEWEST_ROWS)) * FEWEST_ROWS)
    starts = range(0, len(missing), block)
    workers = min(workers, len(starts))
    kind = "each with a GPU" if deal.gpus else f"each with {plural(deal.cpus, 'CPU')}"
    progress.say(f"ray       {plural(workers, 'worker')}, {kind}; {plural(len(starts), 'block')} of rows")
    # Put one by one: where the rows' bytes stand in a table, Ray's store holds them, and spills what is too much.
    blocks = [ray.put(_as_block(rows, digests, missing[start : start + block])) for start in starts]
    told = ray.data.from_arrow_refs(blocks).map_batches(
        Worker,
        fn_constructor_args=[work, deal.cores],
        batch_size=block,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        num_cpus=deal.cpus,
        num_gpus=deal.gpus or None,
    )
    for batch in told.iter_batches(batch_size=None, batch_format="pyarrow"):
        for count, text in zip(*(batch[name].to_pylist() for name in ("rows", "told")), strict=True):
            yield count, json.loads(text)


def _as_block(rows: ConcatRows, digests: Digests, chosen: np.ndarray) -> pa.Table:
    """Rows with their positions, names and digests, and their texts, or where their files are, or their bytes."""
    table = {
        "row": pa.array(chosen, pa.int64()),
        "name": pa.array([rows.name(int(row)) for row in chosen], pa.string()),
        "digest": pa.array([digests[row].tobytes() for row in chosen], pa.binary(16)),
    }
    places = [rows.where(int(row)) for row in chosen]
    if isinstance(rows.parts[0], Texts):
        return pa.table(table | {"texts": pa.array([list(part[at]) for part, at in places], pa.list_(pa.string()))})
    files = [_placed(part, at) for part, at in places if isinstance(part, Files)]
    return pa.table(table | {name: pa.array([file.get(name) for file in files], kind) for name, kind in PLACE.items()})


def _placed(files: Files, at: int) -> dict[str, Any]:
    """Where a row's file is, or its bytes, or why it cannot be read; see `PLACE`."""
    try:
        files.check_inside(at)
        if (part := files.part(at)) is not None:
            return {**part._asdict(), "path": str(Path(part.path).absolute())}
        path = files.path(at)
        return {"content": files[at]} if path is None else {"path": str(path.absolute())}
    except BadRowError as error:
        return {"bad": error.why}


# ── on the workers ───────────────────────────────────────────────────────────────────────────────────────────────────


class Received:
    """The rows of a block, as `extract` reads them: a file when its turn comes, by the threads that decode.

    Args:
        block: as `_as_block` makes it.
    """

    def __init__(self, block: pa.Table) -> None:
        self.block = block
        self.names: list[str] = block["name"].to_pylist()

    def __getitem__(self, row: int) -> Any:
        """The row's content: encoded bytes, or strings.

        Raises:
            BadRowError: the driver cannot read it either.
            DataError: here it is not what it was named by.
        """
        if "texts" in self.block.column_names:
            return tuple(self.block["texts"][row].as_py())
        place = {name: self.block[name][row].as_py() for name in (*PLACE, "digest")}
        if place["bad"] is not None:
            raise BadRowError(self.names[row], place["bad"])
        if place["content"] is not None:
            return place["content"]
        path, alike = place["path"], "the data must lie under the same path on all machines, and stay as they are"
        try:
            whole = place["offset"] is None
            data = read_regular(Path(path)) if whole else FilePart(path, place["offset"], place["size"]).read()
        except (OSError, ValueError) as error:
            raise DataError(f"a worker of Ray cannot read {path}: {why_unreadable(error)}; {alike}") from error
        if digest_bytes(data) != place["digest"]:
            raise DataError(f"a worker of Ray reads other bytes at {path} than when the rows were named; {alike}")
        return data

    def change(self, row: int) -> None:
        """Rows are encoded as they are."""

    def name(self, row: int) -> str:
        """The row's name for a person."""
        return self.names[row]


@dataclass(frozen=True)
class Held(Target):
    """A backbone whose model is built once and kept, whatever number of blocks it is asked for."""

    @cached_property
    def _built(self) -> tuple[nn.Module, set[str]]:
        return super().build()

    def build(self) -> tuple[nn.Module, set[str]]:
        """The same model each time; see `hftl.backbones.protocol.Target.build`."""
        return self._built


class Worker:
    """The actor that holds the backbone: takes blocks of rows, stores their features, and tells how it went.

    Args:
        work: what to do.
        cores: that it may decode on; Ray binds nobody to the CPUs that it deals out.
    """

    def __init__(self, work: Work, cores: int) -> None:
        take_share(cores)
        self.work = work
        self.store = FeatureStore(work.root)
        self.blocks = 0

    def __call__(self, block: pa.Table) -> pa.Table:
        """Store the features of a block's rows.

        Args:
            block: ``row``, ``name``, ``digest``, and ``texts`` or the columns of `PLACE`.

        Returns:
            One row: ``rows``, how many they were, and ``told``, JSON of what `ExtractReport` says, or of the error.
        """
        try:
            with quiet_libraries():
                told: dict[str, Any] = self._extract(block)
        except HftlError as error:
            # As a value: Ray would try a task that raises again, and print where it did.
            told = {"error": error_as_json(error)}
        return pa.table({"rows": [len(block)], "told": [json.dumps(told)]})

    @cached_property
    def _target(self) -> tuple[dict[str, str], Held]:
        """How the backbone is registered, and the backbone."""
        work = self.work
        start_processes()
        spec, backbone = backbone_of(work.recipe, work.options)
        if work.task.of_words:
            backbone = for_words(backbone)
        return spec.origin, Held(backbone, backbone.config(work.task, work.label_names))

    def _extract(self, block: pa.Table) -> dict[str, Any]:
        origin, target = self._target
        spaces = {view: self._space(view, identity) for view, identity in self.work.views.items()}
        beside = spaces_beside(self.store, target, origin, next(iter(spaces)), spaces)
        if self.blocks:
            # A space that no worker has made by now is of a pooling that this model has not.
            beside = {view: space for view, space in beside.items() if space.info is not None}
        self.blocks += 1
        digests = np.frombuffer(b"".join(block["digest"].to_pylist()), np.uint8).reshape(-1, 16)
        report = extract(
            target,
            spaces,
            Received(block),
            digests,
            Process.current(),
            store=self.store,
            beside=beside,
            quiet=True,
            on_bad_row=self.work.on_bad_row,
        )
        rows = block["row"].to_pylist()
        bad = [[rows[at], error.row, error.why] for at, error in report.bad.items()]
        return {"bad": bad, "rounding": report.rounding}

    def _space(self, view: View, identity: Mapping[str, Any]) -> Space:
        """The space of a view, as the driver names it.

        Raises:
            BackboneError: on this machine it would have another name.
        """
        origin, target = self._target
        own = open_space(self.store, target.backbone, origin, view)
        if {**own.identity, **EQUAL_LENGTHS} != {**identity, **EQUAL_LENGTHS}:
            both = {**own.identity, **identity}
            differ = sorted(name for name in both if own.identity.get(name) != identity.get(name))
            raise BackboneError(
                f"{target.backbone.name} is not the same on a worker of Ray: {', '.join(differ)} differ; install the "
                "same releases of hftl and its plugins everywhere, and name a model's commit"
            )
        # The driver may know already that batches need equal lengths.
        return self.store.space(identity, own.label) if EQUAL_LENGTHS.items() <= identity.items() else own
