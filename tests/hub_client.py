"""A process whose environment is all it knows the Hub by, for clients read their settings once, when imported.

What tests call in it stands here too, because the process imports the module of what it calls, and most are heavy.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hub_server import Hub


def environment_set(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def with_token(token: str | None, function: Callable[..., Any], arguments: tuple[Any, ...], options: Any) -> Any:
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    return function(*arguments, **options)


class Client:
    """Calls functions of a test module in a process of its own; starting one takes seconds, so tests may share it."""

    def __init__(self, hub: Hub, home: Path, token: str | None = None, **environment: str) -> None:
        self.token = token
        self.home = home
        given = hub.environment(home, None, **environment)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=environment_set, initargs=(given,))

    def __call__(self, function: Callable[..., Any], *arguments: Any, token: str | None = None, **options: Any) -> Any:
        """Call with the client's token, or another one (``""`` for none)."""
        token = self.token if token is None else token
        return self._pool.submit(with_token, token, function, arguments, options).result(timeout=180)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


# ── called in the process ────────────────────────────────────────────────────────────────────────────────────────────


def read_model(ref: str, **options: Any) -> dict[str, Any]:
    from hftl.backbones.source import hub_source

    source = hub_source(ref, **options)
    return {
        "commit": source.commit,
        "folder": source.folder,
        "files": sorted(path.name for path in source.folder.iterdir()),
        "tensors": {name: str(file) for name, file in source.weight_files().items()},
        "license": source.license(),
        "pickled": source.pickled,
    }


def read_data(ref: str, wants: str = "text") -> dict[str, Any]:
    from hftl.data import load_data

    data = load_data(ref, wants=wants)
    return {
        "rows": {split.name: len(split) for split in (data.train, data.test)},
        "labels": data.label_names,
        "commit": data.identity["commit"],
        "notes": data.notes,
        "first": data.train.inputs[0],
    }


def push(run: Path, repo_id: str, **options: Any) -> dict[str, Any]:
    from hftl.export.push import push

    done = push(run, repo_id, **options)
    return {"url": done.url, "commit": done.commit, "notes": done.notes}


def push_at_once(runs: list[Path], repo_id: str) -> list[str]:
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(lambda run: push(run, repo_id)["commit"], runs))


def hftl(*arguments: object) -> tuple[int, str, str]:
    """The command line: exit status, stdout and stderr."""
    from hftl.cli import main

    sys.argv = ["hftl", *map(str, arguments)]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    return status, out.getvalue(), err.getvalue()


def execute(source: str, *names: str) -> list[Any]:
    """Run Python source, such as a card's example, and give back some of its variables; hftl must not be needed."""
    variables: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()):
        exec(source, variables)
    assert not any(module == "hftl" or module.startswith("hftl.") for module in sys.modules)
    return [variables[name] for name in names]


def cache_push(root: Path, space: str, target: str) -> dict[str, Any]:
    from hftl.store.store import FeatureStore
    from hftl.travel.push import push_space

    done = push_space(FeatureStore(root), space, target)
    return {"url": done.url, "commit": done.commit, "notes": done.notes, "changed": done.changed}


def cache_pull(root: Path, source: str) -> dict[str, Any]:
    from hftl.store.store import FeatureStore
    from hftl.travel.pull import pull_space

    done = pull_space(FeatureStore(root), source)
    return {"origin": str(done.origin), "fetched": done.fetched, "removed": done.removed, "refused": done.refused}


def killed_at(event: str, number: int, function: Callable[..., Any], *arguments: Any) -> bool:
    """Call in a child that is killed at the n-th ``"request"`` before it goes, or ``"response"`` once it came.

    Whether there were so many; elsewhere the call ended well.
    """
    from huggingface_hub import get_session

    import hftl.travel.pull
    import hftl.travel.push  # noqa: F401  # in the parent, so that each child has it

    child = os.fork()
    if not child:
        seen = 0

        def kill(_: Any) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

        hooks = get_session().event_hooks
        get_session().event_hooks = {**hooks, event: [*hooks.get(event, []), kill]}
        try:
            function(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status != 0
