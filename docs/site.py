"""What the site needs beyond the pages: two files of the repository's top level are pages too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

TOP = Path(__file__).parent.parent
FROM_THE_TOP = {"LOG.md": "log.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from the top level."""
    for name, page in FROM_THE_TOP.items():
        files.append(File.generated(config, page, content=(TOP / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to them, which in the repository go one folder up, to where they are on the site."""
    for name, page in FROM_THE_TOP.items():
        markdown = markdown.replace(f"](../{name})", f"]({page})")
    # Where no line begins with a prompt, all of a console's lines would be taken for output and be grey.
    markdown = re.sub(r"^```console\n((?:(?!\$ |```).*\n)+)^```$", r"```sh\n\1```", markdown, flags=re.MULTILINE)
    # A comment would begin a block of HTML, in which Markdown is no Markdown.
    return re.sub(r"^<!-- .*? -->\n", "", markdown, flags=re.MULTILINE)
