"""timm's image models, which transformers wraps: ``timm/…`` on the Hub, and folders that hold one."""

from __future__ import annotations

import json
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import hftl

if TYPE_CHECKING:
    from hftl import Backbone, BackboneOptions, BackboneSpec

TIMM_OWN = "hf-hub:"  # how timm itself writes a Hub id


@hftl.hookimpl
def hftl_resolve_backbone(ref: str) -> BackboneSpec | None:
    """Claim ``timm/…``, ``hf-hub:timm/…`` and folders that hold a timm model.

    Raises:
        BackboneError: timm or torchvision is not installed.
    """
    name = ref.removeprefix(TIMM_OWN)
    if not (name.startswith("timm/") or _holds_timm_model(Path(name).expanduser())):
        return None
    missing = [package for package in ("timm", "torchvision") if find_spec(package) is None]
    if missing:
        raise hftl.BackboneError(
            f"{name} needs {' and '.join(missing)}: pip install 'hftl-timm[timm]', with a torchvision of the same "
            "build as your torch (there is none for some builds, such as torch for CPUs only from another index)"
        )
    return hftl.BackboneSpec(name, "image", partial(load, name))


def load(name: str, options: BackboneOptions) -> Backbone:
    """The model of a Hub repository or a folder; brings torch.

    Raises:
        BackboneError: torchvision does not load beside this torch, or the model cannot be found.
    """
    try:
        import_module("torchvision")
        import_module("timm")
    # torchvision's compiled operators fail in whatever way they like.
    except Exception as error:
        why = " ".join(str(error).split())[:160]
        raise hftl.BackboneError(
            f"{name}: torchvision does not load beside this torch ({why}); install torch and torchvision of one build"
        ) from error
    return hftl.ImageBackbone(hftl.Source.of(name, offline=options.offline))


def _holds_timm_model(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "architecture" in config and "pretrained_cfg" in config
