"""``hftl backbones``: what is registered, and by whom."""

from __future__ import annotations

from typing import Annotated

import typer

from hftl.cli.output import show
from hftl.cli.questions import AsJson, Quiet


def backbones(
    modality: Annotated[str | None, typer.Option(help="Only these: image, text, …")] = None,
    as_json: AsJson = False,
    _quiet: Quiet = False,
) -> None:
    """List registered backbones; any Hub id or folder that transformers can load works too."""
    from hftl.plugins.registry import backbone_claims, conflict_of

    rows = [
        {
            "name": spec.name,
            "modality": spec.modality,
            "parameters": spec.parameters,
            "size": f"{spec.parameters / 1e6:.1f} M" if spec.parameters else None,
            "license": spec.license,
            "description": spec.description,
            "plugin": f"{spec.plugin} {spec.plugin_version}",
            # A name that two plugins claim can be given to neither; the others are not touched by that.
            "error": conflict_of(name, claims),
        }
        for name, claims in backbone_claims().items()
        for spec in claims
        if modality in (None, spec.modality)
    ]
    columns = ["name", "modality", "size", "license", "description", "plugin"]
    show(rows, [*columns, "error"] if any(row["error"] for row in rows) else columns, as_json=as_json)
