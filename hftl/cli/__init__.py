"""The ``hftl`` command line: one thin file for each command, heavy imports inside their functions.

Exit status: 0 done, 1 failed, 2 the input is wrong, 130 interrupted, 141 nobody read the output to its end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from hftl._version import __version__
from hftl.cli import (
    advise,
    audit,
    backbones,
    cache,
    compare,
    curve,
    doctor,
    evaluate,
    export,
    features,
    layers,
    new,
    plugins,
    predict,
    push,
    rank,
    recipes,
    report,
    run,
    runs,
    transfer,
    tune,
    zero_shot,
)
from hftl.cli.flags import RecipeCommand
from hftl.cli.launch import is_first_process
from hftl.cli.stopping import STATUS, StopOnce
from hftl.errors import HftlError, UserError
from hftl.wording import DEBUG, named_error, plain, printable

HOME_PAGE = "https://pypi.org/project/hftl/"
# What a shell says of a program that SIGPIPE ended, which is what happens to other programs there.
STATUS_OF_CLOSED_PIPE = 141
SECONDS_TO_SAY = 1.0
COMPLETION = "_HFTL_COMPLETE"
NOISE = (DEBUG, "TORCH_CPP_LOG_LEVEL", "HF_HUB_DISABLE_PROGRESS_BARS")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# A path that the user gave is wrong; a disk that breaks is nobody's input.
OF_A_PATH = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS),
)

HELP = """Transfer learning with Hugging Face models: features of the frozen backbone are computed once and kept,
heads are solved exactly, and what comes out loads with plain transformers."""


def build_app() -> typer.Typer:
    """The command line with the commands of all loaded plugins."""
    app = typer.Typer(name="hftl", help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(options)
    app.command("run", cls=RecipeCommand)(run.run)
    app.command("features", cls=RecipeCommand)(features.features)
    app.command("rank", cls=RecipeCommand)(rank.rank)
    app.command("layers", cls=RecipeCommand)(layers.layers)
    app.command("audit", cls=RecipeCommand)(audit.audit)
    app.command("transfer", cls=RecipeCommand)(transfer.transfer)
    app.command("curve", cls=RecipeCommand)(curve.curve)
    app.command("zero-shot", cls=RecipeCommand)(zero_shot.zero_shot)
    app.command("advise", cls=RecipeCommand)(advise.advise)
    app.command("tune", cls=RecipeCommand)(tune.tune)
    app.command("runs")(runs.runs)
    app.command("compare")(compare.compare)
    app.command("predict")(predict.predict)
    app.command("evaluate")(evaluate.evaluate)
    app.command("report")(report.report)
    app.command("export")(export.export)
    app.command("push")(push.push)
    app.command("backbones")(backbones.backbones)
    app.command("recipes")(recipes.recipes)
    app.command("plugins")(plugins.plugins)
    app.add_typer(cache.app, name="cache")
    app.add_typer(new.app, name="new")
    app.command("doctor")(doctor.doctor)
    plugins.add_commands(app)
    return app


def print_version(asked: bool) -> None:
    """Print the version and exit, if it was asked for."""
    if asked:
        print(f"hftl {__version__}")
        raise typer.Exit


def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, and what other libraries report.")
    ] = False,
    # A callback of its own, because a group without a command prints its help before it runs.
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=print_version),
    ] = False,
) -> None:
    """Options of every command."""
    # `main` has already read it: an error shows its traceback wherever on the line the flag stands.
    del debug, version


def main() -> None:
    """Run the command line and exit with its status."""
    # A repository without safetensors may else be served from a pull request of the Hub's conversion bot, unseen.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that has no sign for a character shows a mark instead of ending the command.
            stream.reconfigure(errors="replace")
    with StopOnce() as stop, noise_of_libraries(sys.argv[1:]):
        sys.exit(guarded(sys.argv[1:], stop))


@contextlib.contextmanager
def noise_of_libraries(arguments: Sequence[str]) -> Iterator[None]:
    """Let other libraries' warnings and bars be seen with ``--debug`` alone, and bars not with ``--quiet``."""
    before, environment = warnings.showwarning, dict(os.environ)
    if "--debug" in arguments:
        os.environ[DEBUG] = "1"
    elif not sys.warnoptions:
        # A warning is for whoever writes Python; one that was made an error stays one.
        warnings.showwarning = lambda *_, **__: None
        # What torch's own code prints cannot be told later.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "--quiet" in arguments or "--json" in arguments:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        yield
    finally:
        warnings.showwarning = before
        for name in NOISE:
            os.environ.pop(name, None)
            if name in environment:
                os.environ[name] = environment[name]


def guarded(arguments: Sequence[str], stop: StopOnce) -> int:
    """Run a command; whatever goes wrong in it becomes one line on standard error.

    Args:
        arguments: of the command line; ``--debug`` anywhere shows the traceback too.
        stop: what a signal does.

    Returns:
        The exit status.
    """
    debug = "--debug" in arguments
    try:
        status = invoke([argument for argument in arguments if argument != "--debug"])
        # Else a pipe that nobody reads any more would only be noticed when Python ends, with a traceback.
        sys.stdout.flush()
        return status
    except BaseException as error:
        if pipe_is_closed(error):
            close_output()
            return STATUS_OF_CLOSED_PIPE
        line, status = verdict(error, stop)
        if debug and not isinstance(error, SystemExit):
            traceback.print_exc()
        if is_first_process() or not is_met_everywhere(error):
            if line:
                print(f"hftl: {plain(line)}", file=sys.stderr, flush=True)
        else:
            # Where one process ends the launcher stops the others, and the first is to say why.
            time.sleep(SECONDS_TO_SAY)
        stop.finished = True
        return status


def is_met_everywhere(error: BaseException) -> bool:
    """Whether an error that ended this process ends all processes of its launcher."""
    if isinstance(error, KeyboardInterrupt) or getattr(error, "everywhere", False):
        return True
    # Until processes meet, each does the same.
    torch = sys.modules.get("torch")
    return not (torch and torch.distributed.is_available() and torch.distributed.is_initialized())


def invoke(arguments: list[str]) -> int:
    """Run a command without typer's own handling of what goes wrong; its exit status."""
    command = typer.main.get_command(build_app())
    if COMPLETION in os.environ:
        # A shell asks what may stand next.
        return int(command.main(arguments, prog_name="hftl") or 0)
    try:
        with command.make_context("hftl", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return int(done.exit_code)
    return 0


def verdict(error: BaseException, stop: StopOnce) -> tuple[str, int]:
    """What to say of an exception that ended a command, and the exit status."""
    if isinstance(error, HftlError):
        return printable(error), error.exit_code
    if isinstance(error, SystemExit):
        # Some library, or a plugin's command, ended the process; text in place of a status is meant for people.
        said = error.code if isinstance(error.code, int) or error.code is None else 1
        return ("" if isinstance(error.code, int) or error.code is None else printable(error.code)), said or 0
    if isinstance(error, KeyboardInterrupt):
        why = "interrupted" if stop.name in (None, "SIGINT") else f"stopped by {stop.name}"
        return f"{why}; what was computed so far is kept: run the same command again to go on", STATUS
    if hasattr(error, "format_message"):
        return usage(error)
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno in NO_SPACE):
        where = f": {printable(error.filename)}" if error.filename else ""
        what = "; free some space, or choose another folder" if error.errno in NO_SPACE else ""
        return f"{error.strerror}{where}{what}", UserError.exit_code if error.errno in OF_A_PATH else 1
    known = f"{named_error(error)}; this is a fault of hftl or of a library that it uses"
    return f"{known}: run the command again with --debug, and report what it prints at {HOME_PAGE}", 1


def usage(error: Any) -> tuple[str, int]:
    """What typer says of a command line that it cannot read; its help, where a group was called without a command."""
    where = error.ctx.command_path if getattr(error, "ctx", None) else "hftl"
    message = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return "", int(error.exit_code)
    return f"{printable(message).rstrip('.')}; see `{where} --help`", int(error.exit_code)


def pipe_is_closed(error: BaseException) -> bool:
    """Whether an error comes from a reader of the output that went away, such as ``head``."""
    # rich, which prints typer's help, turns it into an exit.
    return isinstance(error, BrokenPipeError) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    )


def close_output() -> None:
    """Let Python's last flush go nowhere, because it would complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
