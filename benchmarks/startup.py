"""What it costs to start: `hftl --help` with ten installed plugins, and `hftl predict` of one text.

    python benchmarks/startup.py [--plugins 10] [--repeats 15] [--predict RUN]

Each plugin registers a backbone, a recipe and a command. The two commands take turns, and the medians of their CPU
times (user and system, of the whole process) are compared; the promise is less than 0.15 s more. Exit status 1 if it is
broken. With ``--predict``, the run of a text model, one text is predicted beside a bare process that imports torch and
the model's class from transformers: what is above that is hftl's own and the model's loading.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from machine import tell_machine

LIMIT = 0.15
PLUGIN = '''
import hftl

@hftl.hookimpl
def hftl_register_backbones(register):
    register(hftl.BackboneSpec("backbone-{i}", "image", load))

@hftl.hookimpl
def hftl_register_recipes(register):
    register("recipe-{i}", "plugin_{i}:recipe")

@hftl.hookimpl
def hftl_register_commands(app):
    @app.command("command-{i}")
    def command(loud: bool = False, times: int = 1):
        """Say hello."""

def load(options):
    import torch
'''


def install(folder: Path, count: int) -> None:
    """Write plugins and the metadata that an installer would write."""
    for i in range(count):
        (folder / f"plugin_{i}.py").write_text(PLUGIN.replace("{i}", str(i)))
        info = folder / f"plugin_{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{i}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hftl]\nplugin-{i} = plugin_{i}\n")


BARE = "import torch; from transformers import AutoTokenizer, {0}; {0}"


def installed() -> dict[str, str]:
    """The environment of a process that reads bytecode, as where pip installed hftl; the first one writes it."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(environment: dict[str, str], *arguments: str) -> float:
    """CPU seconds of a Python process; of `hftl --help` without arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *(arguments or ("-m", "hftl", "--help"))]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plugins", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--predict", type=Path, metavar="RUN")
    options = parser.parse_args()
    if options.predict:
        return predict(options.predict, options.repeats)
    with tempfile.TemporaryDirectory() as name:
        install(Path(name), options.plugins)
        path = os.pathsep.join([name, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        names = ",".join(f"plugin-{i}" for i in range(options.plugins))
        # The same path in both, so that only loading differs.
        with_plugins = {**installed(), "PYTHONPATH": path, "HFTL_PLUGINS": names}
        without = {**with_plugins, "HFTL_PLUGINS": ""}
        for environment in (with_plugins, without):
            seconds(environment)
        pairs = [(seconds(without), seconds(with_plugins)) for _ in range(options.repeats)]
    none, some = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    result = {
        "plugins": options.plugins,
        "cpu_seconds": {"none": none, "all": some},
        "more": some - none,
        "limit": LIMIT,
    }
    print(json.dumps(result, indent=2))
    return int(some - none >= LIMIT)


def predict(run: Path, repeats: int) -> int:
    """One text by a run, and a bare process that imports what its model needs, in turns."""
    (architecture,) = json.loads((run / "model" / "config.json").read_text())["architectures"]
    environment = installed()
    bare, asked = ("-c", BARE.format(architecture)), ("-m", "hftl", "predict", str(run), "one short text")
    seconds(environment, *bare)
    seconds(environment, *asked)
    pairs = [(seconds(environment, *bare), seconds(environment, *asked)) for _ in range(repeats)]
    imports, whole = median(pair[0] for pair in pairs), median(pair[1] for pair in pairs)
    print(json.dumps({"cpu_seconds": {"imports": imports, "predict": whole}, "ratio": whole / imports}, indent=2))
    return 0


if __name__ == "__main__":
    tell_machine()
    sys.exit(main())
