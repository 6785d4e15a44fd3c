"""The model card: what a model is, how it is used, how it was made and how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined


def write_card(
    folder: Path,
    *,
    backbone: str,
    commit: str | None,
    pipeline_tag: str,
    library: str,
    facts: Mapping[str, Any],
) -> None:
    """Write ``README.md`` into a model folder.

    Args:
        folder: the exported model.
        backbone: what the user calls the backbone; a Hub id where ``commit`` is given.
        commit: the backbone's commit on the Hub.
        pipeline_tag: the Hub's task name.
        library: ``"transformers"`` or ``"sentence-transformers"``.
        facts: what the template prints: name, data, task, label_names, method, metrics, sizes, versions.
    """
    metadata = ModelCardData(
        base_model=backbone if commit else None,
        pipeline_tag=pipeline_tag,
        library_name=library,
        tags=["hftl", "transfer-learning"],
        # One metric of many stands for the model in the Hub's lists.
        metrics=[name for name in ("accuracy", "f1_macro", "r2") if name in facts["metrics"]][:1],
    )
    environment = Environment(
        loader=PackageLoader("hftl.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = escape_cell
    text = environment.get_template("card.md.jinja").render(
        backbone=backbone, commit=commit, pipeline_tag=pipeline_tag, library=library, **facts
    )
    (folder / "README.md").write_text(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n", encoding="utf-8")


def escape_cell(value: object) -> str:
    """Text for a cell of a Markdown table: nothing in it is markup, HTML or a line break."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+!|~" else c for c in text)
