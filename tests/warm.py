"""Commands in processes of their own that begin warm: each is a fork of one process that has imported the libraries.

A command that a page tells takes a second, and importing torch and transformers for it takes five. So a page's programs
(``hftl``, ``python``, ``pytest``, ``pip``) are small scripts that ask the warm process for a fork, which gets their
folder, their environment and their streams, and is otherwise what ``python -m MODULE`` would be::

    with Warm(folder, environment, {"hftl": ["hftl"]}) as warm:
        subprocess.run(["sh", "-c", "hftl backbones | head -3"], env=warm.environment)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("torch", "transformers", "datasets", "peft", "accelerate", "sklearn.linear_model", "sentence_transformers"),
    *("hftl.pipeline", "hftl.predict", "hftl.finetune.train", "hftl.export.push", "hftl.scout.advise"),
)
READY = b"ready"
# What the libraries read once, when they are imported.
READ_EARLY = ("HF_", "HUGGING", "TRANSFORMERS_", "OMP_", "MKL_")

PROGRAM = """#!{python} -IS
import json, os, socket, sys
asking = socket.socket(socket.AF_UNIX)
asking.connect({path!r})
socket.send_fds(asking, [b"."], [0, 1, 2])
asking.sendall(json.dumps([{module!r}, {before!r} + sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
asking.shutdown(socket.SHUT_WR)
sys.exit(int(asking.recv(10) or 1))
"""


class Warm:
    """The warm process, and a folder of programs that are forks of it.

    Args:
        folder: where the programs and the socket go.
        environment: of the process and of the commands.
        programs: what each program's name runs: a module, and arguments that come before its own.

    Attributes:
        programs: the folder of the programs.
        environment: of the commands; finds the programs first.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], programs: Mapping[str, Sequence[str]]) -> None:
        # Of its own, because a socket's path may not be long.
        self._beside = tempfile.TemporaryDirectory(prefix="hftl-")
        path = str(Path(self._beside.name, "warm"))
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        for name, (module, *before) in programs.items():
            program = self.programs / name
            program.write_text(PROGRAM.format(python=sys.executable, path=path, module=module, before=list(before)))
            program.chmod(0o755)
        own = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self.environment = dict(environment) | {
            "PATH": os.pathsep.join([str(self.programs), environment["PATH"]]),
            "PYTHONPATH": own,
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, path],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == READY

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.communicate(timeout=30)
        self._beside.cleanup()


def serve(path: str) -> None:
    """Import the libraries, then answer each program that asks with a fork, until whoever started this is gone."""
    for name in LIBRARIES:
        importlib.import_module(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(16)
    print(READY.decode(), flush=True)
    while listening in select.select([listening, 0], [], [])[0]:
        asking, _ = listening.accept()
        # The first fork waits for the second, which is the command, so that several can run at once, as in a pipe.
        if os.fork():
            asking.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        listening.close()
        answer(asking)


def answer(asking: socket.socket) -> None:
    """In a fork: run what is asked for in a fork of its own, and say how it ended."""
    _, streams, _, _ = socket.recv_fds(asking, 1, 3)
    given = b""
    while part := asking.recv(1 << 16):
        given += part
    module, arguments, folder, environment = json.loads(given)
    command = os.fork()
    if not command:
        asking.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os._exit(run(module, arguments, folder, environment))
    _, status = os.waitpid(command, 0)
    with contextlib.suppress(OSError):
        asking.sendall(str(os.waitstatus_to_exitcode(status) & 255).encode())
    os._exit(0)


def run(module: str, arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """What ``python -m module`` does; its exit status."""
    os.chdir(folder)
    early = {name for name in {*environment, *os.environ} if name.startswith(READ_EARLY)}
    if any(environment.get(name) != os.environ.get(name) for name in early):
        os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)
    # Made anew, because those of the warm process know of its own streams where they can seek and what they buffer.
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    there = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [folder, *there, *(entry for entry in sys.path[1:] if entry not in there)]
    importlib.invalidate_caches()
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return status_of(stop)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    return 0


def status_of(stop: SystemExit) -> int:
    """The status that Python gives a process that ends so."""
    code: Any = stop.code
    if isinstance(code, int) or code is None:
        return (code or 0) & 255
    print(code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    serve(sys.argv[1])
