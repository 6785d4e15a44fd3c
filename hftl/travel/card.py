"""The card of a space that is handed on: what its rows are, what they reveal, and how to read them without hftl."""

from __future__ import annotations

import json
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hftl.store.description import Description
from hftl.store.identity import blocks_kept, is_of_views, short_storage
from hftl.wording import plural, printable


def features_card(
    description: Description,
    place: str,
    *,
    on_the_hub: bool,
    rows: int,
    shards: int,
    elsewhere: int,
    license: str | None,
) -> str:
    """The text of ``README.md``.

    Args:
        description: of the space.
        place: what a person calls the place that it goes to.
        on_the_hub: whether that is a repository of the Hub.
        rows: distinct rows of the shards that are pushed.
        shards: how many these are.
        elsewhere: how many more shards are there.
        license: the Hub's id of a licence, if one is stated.
    """
    identity = description.identity
    backbone, commit = identity.get("model"), identity.get("commit")
    on_hub = isinstance(backbone, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", backbone, re.ASCII) and commit
    text = _template().render(
        title=_bare_text(description.label),
        backbone=f"[{backbone}](https://huggingface.co/{backbone}/tree/{commit})" if on_hub else None,
        commit=_bare_text(commit),
        reading=_kept_of_pass(identity),
        identity=json.dumps(identity, indent=2, sort_keys=True, ensure_ascii=True),
        rows=plural(rows, "row"),
        shards=plural(shards, "shard"),
        elsewhere=plural(elsewhere, "more shard") if elsewhere else "",
        columns={_bare_text(name): spec for name, spec in description.columns.items()},
        license=license,
        on_the_hub=on_the_hub,
        place=place,
        torch=any(spec.dtype == "bfloat16" for spec in description.columns.values()),
        is_text=identity.get("modality") == "text",
        is_changed=is_of_views(identity),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _kept_of_pass(identity: dict[str, Any]) -> str:
    """What is kept of a pass, in one line."""
    blocks, short = blocks_kept(identity), short_storage(identity)
    kept = (
        f"pooling `{_bare_text(identity.get('pooling'))}`"
        if blocks is None
        else f"what the first {blocks} blocks return"
    )
    precision = {"no": "float32"}.get(str(identity.get("precision")), _bare_text(identity.get("precision")))
    stored = f", stored in {short}" if short else ""
    changed = ", of changed views of pictures" if is_of_views(identity) else ""
    return f"{kept}, computed in {precision}{stored}{changed}"


def _bare_text(value: object) -> str:
    """Text that means nothing in Markdown, HTML or YAML."""
    return re.sub(r"[^\w ./@+-]", "\ufffd", printable(value))


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("hftl.travel", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # what others wrote goes through `_bare_text`, or stands in a fence as JSON in ASCII
    )
    return environment.get_template("card.md.jinja")
