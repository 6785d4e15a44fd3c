"""``hftl backbones``: what is registered, and by whom."""

from __future__ import annotations

from typing import Annotated

import typer

from hftl.cli.output import show


def backbones(
    modality: Annotated[str | None, typer.Option(help="Only these: image, text, …")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List registered backbones; any Hub id or folder that transformers can load works too."""
    from hftl.plugins.registry import backbones as registered

    rows = [
        {
            "name": spec.name,
            "modality": spec.modality,
            "parameters": spec.parameters,
            "size": f"{spec.parameters / 1e6:.1f} M" if spec.parameters else None,
            "license": spec.license,
            "description": spec.description,
            "plugin": f"{spec.plugin} {spec.plugin_version}",
        }
        for spec in registered().values()
        if modality in (None, spec.modality)
    ]
    show(rows, ["name", "modality", "size", "license", "description", "plugin"], as_json=as_json)
