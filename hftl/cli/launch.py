"""Start a command of hftl in several processes, through the launcher that the machine's devices need."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys

from hftl.lifetime import LAUNCHER

COMMAND = "HFTL_COMMAND"
SECONDS_TO_SAVE = 600


def launch(num_processes: int) -> int:
    """Start this very command in several processes and wait for them; returns the exit status of the first that failed.

    A signal to stop is passed on, and the processes have ten minutes to save their state.
    """
    import torch

    arguments = _without_option(sys.argv[1:], "--num-processes")
    os.environ[LAUNCHER] = str(os.getpid())
    os.environ[COMMAND] = shlex.join(["hftl", *sys.argv[1:]])
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    if torch.accelerator.is_available():
        launcher = ["accelerate.commands.launch", "--num_processes", str(num_processes), "-m", "hftl"]
        return subprocess.run([sys.executable, "-m", *launcher, *arguments], check=False).returncode
    # accelerate launch starts a single process on CPUs, whatever it is told.
    return _launch_on_cpu(num_processes, arguments)


def _launch_on_cpu(num_processes: int, arguments: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes say themselves what went wrong.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_processes, 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id="hftl",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "hftl", *arguments)
    except ChildFailedError as failed:
        return int(failed.get_first_failure()[1].exitcode)
    except SignalException:
        return 130
    return 0


def line_to_resume() -> str:
    """The command that goes on with this one."""
    command = os.environ.get(COMMAND) or shlex.join(["hftl", *sys.argv[1:]])
    return command if "--resume" in shlex.split(command) else f"{command} --resume"


def is_first_process() -> bool:
    """Whether this process speaks for all that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _without_option(arguments: list[str], option: str) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(f"{option}="):
            kept.append(argument)
        skip = not skip and argument == option
    return kept
