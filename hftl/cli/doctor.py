"""``hftl doctor``: what this machine has, and what stands in the way."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hftl.cli.output import show
from hftl.cli.questions import AsJson, Quiet
from hftl.wording import human_bytes


def doctor(as_json: AsJson = False, _quiet: Quiet = False) -> None:
    """Versions, accelerators, the cache folder, the Hub login, the offline state."""
    rows = [*_versions(), *_devices(), _cache(), *_hub(), *_plugins()]
    show(rows, ["what", "state"], as_json=as_json)


def _row(what: str, state: Any) -> dict[str, Any]:
    return {"what": what, "state": state}


def _versions() -> list[dict[str, Any]]:
    from hftl._version import __version__

    rows = [_row("hftl", __version__), _row("python", platform.python_version())]
    for name in ("torch", "torchvision", "transformers", "datasets", "accelerate", "peft", "huggingface_hub"):
        try:
            rows.append(_row(name, version(name)))
        except PackageNotFoundError:
            if name != "torchvision":
                rows.append(_row(name, f"MISSING: pip install {name}"))
    return rows


def _devices() -> list[dict[str, Any]]:
    try:
        import torch
    except ImportError as error:
        return [_row("device", f"torch does not import: {error}")]
    rows = [_row("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        rows.append(_row("accelerator", f"{torch.accelerator.device_count()} × {kind}"))
    else:
        rows.append(_row("accelerator", "none"))
    return rows


def _cache() -> dict[str, Any]:
    from hftl.store.store import cache_root

    root = cache_root()
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    writable = "" if os.access(there, os.W_OK) else ", NOT WRITABLE: set HFTL_CACHE to another folder"
    return _row("cache", f"{root} ({human_bytes(shutil.disk_usage(there).free)} free{writable})")


def _hub() -> list[dict[str, Any]]:
    from huggingface_hub import constants, get_token

    from hftl.hub.client import offline

    return [
        _row("hub", f"{constants.ENDPOINT}{' (offline)' if offline() else ''}"),
        # Only whether there is one: a token is never printed.
        _row("hub login", "a token is set" if get_token() else "no token; `hf auth login` for private models"),
        _row("hub cache", constants.HF_HUB_CACHE),
    ]


def _plugins() -> list[dict[str, Any]]:
    from hftl.plugins.manager import plugins

    return [_row(f"plugin {p.name}", f"FAILED: {p.error}") for p in plugins().failed]
