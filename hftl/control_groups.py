"""Control groups of Linux, by which containers and schedulers bound what a process may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def control_groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the groups that bound this process, from its own upwards, with their version, 1 or 2.

    From within a container they may be seen under another path, so that a folder need not be there.

    Args:
        controller: what is bounded, ``memory`` or ``cpu``.
    """
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        # No Linux.
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root, version = (ROOT / controller, 1) if controllers else (ROOT, 2)
        inside = root / path.lstrip("/")
        yield from ((folder, version) for folder in (inside, *inside.parents) if folder.is_relative_to(root))
