"""Installed plugins that are not: a folder on the path with modules and the metadata that an installer would write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any


@dataclass
class Site:
    """A folder that stands for ``site-packages``."""

    folder: Path
    names: list[str] = field(default_factory=list)

    def install(self, name: str, code: str, *, entry: str | None = None, group: str = "hftl") -> None:
        """Install the package ``name`` 1.2 with one module and the entry point ``entry`` (else ``name``)."""
        module = name.replace("-", "_")
        (self.folder / f"{module}.py").write_text(dedent(code))
        info = self.folder / f"{module}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry or name} = {module}\n")
        self.names.append(entry or name)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment in which these plugins, and no others, are installed."""
        path = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        own = {"PYTHONPATH": path, "HFTL_PLUGINS": ",".join(self.names), "COLUMNS": "200"}
        return {**os.environ, **own, "HFTL_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1", **more}

    def hftl(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the real command line."""
        return subprocess.run(
            [sys.executable, "-m", "hftl", *arguments],
            env=self.environment(**more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def python(self, code: str, **more: str) -> str:
        """Run Python code where these plugins are installed; what it printed."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=self.environment(**more),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def plugins(self, **more: str) -> dict[str, dict[str, Any]]:
        """What ``hftl plugins --json`` says, by plugin."""
        done = self.hftl("plugins", "--json", **more)
        assert done.returncode == 0, done.stderr
        return {row["plugin"]: row for row in json.loads(done.stdout)}


GOOD = """
    import hftl

    @hftl.hookimpl
    def hftl_register_backbones(register):
        register(hftl.BackboneSpec("{name}", "image", load))

    def load(options):
        return "no backbone"
"""


def good(name: str) -> str:
    """A plugin's code that registers one backbone whose loader returns the wrong thing."""
    return GOOD.format(name=name)
