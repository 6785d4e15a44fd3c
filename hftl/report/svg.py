"""`Drawing`: a figure of matplotlib as SVG that belongs into a page.

It is drawn with stand-ins for colours, which become the page's own variables, so that one figure is right in light and
dark; style attributes, which the page's policy forbids, become plain attributes; and names that others wrote never
reach matplotlib, which would look for mathematics and missing letters in them: a figure is drawn with stand-ins of
about their length, and the names are put in afterwards, as text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from hftl.wording import printable, shortened

WIDTH = 460
INK, QUIET, LINE, ACCENT = "#010101", "#020202", "#030303", "#040404"
SERIES = [f"#0505{k:02x}" for k in range(1, 11)]
VARIABLES = {INK: "--ink", QUIET: "--quiet", LINE: "--line", ACCENT: "--accent"} | {
    stand_in: f"--series-{k}" for k, stand_in in enumerate(SERIES, 1)
}
LONGEST_NAME = 28
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hftl",
    "font.size": 11.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "text.color": INK,
    "text.parse_math": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "patch.linewidth": 0.0,
}


@dataclass
class Drawing:
    """A figure that is being drawn.

    Attributes:
        name: what ids in it begin with; another one for each figure of a page.
        width: in pixels.
        height: in pixels.
        names: texts of other people by the id that stands for them.
    """

    name: str
    width: float
    height: float
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72)
        self.figure.patch.set_visible(False)

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes with so many pixels around them."""
        size = (self.width - left - right) / self.width, (self.height - top - bottom) / self.height
        axes = self.figure.add_axes((left / self.width, bottom / self.height, *size))
        axes.patch.set_visible(False)
        axes.tick_params(length=0, pad=5)
        return axes

    def stand_in(self, text: Text, name: str, longest: int = LONGEST_NAME) -> None:
        """Let a text of matplotlib stand for a name of other people."""
        shown = shortened(printable(name), longest)
        text.set_text("x" * max(1, len(shown)))
        text.set_gid(f"name-{len(self.names)}")
        self.names[f"name-{len(self.names)}"] = shown

    def names_at(self, axis: Axis, names: Sequence[str], *, rotation: float = 0) -> None:
        """Names of other people at 0, 1, 2, … of an axis."""
        axis.set_ticks(range(len(names)), ["x" * max(1, min(len(name), LONGEST_NAME)) for name in names])
        axis.set_tick_params(rotation=rotation)
        for tick, name in zip(axis.get_ticklabels(), names, strict=True):
            self.stand_in(tick, name)

    def svg(self, title: str) -> Markup:
        """The figure as part of a page.

        Args:
            title: what it shows, for whoever does not see it.
        """
        file = io.BytesIO()
        self.figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        root = ElementTree.fromstring(file.getvalue())
        for definitions in root.findall(f"{_SVG}defs"):
            root.remove(definitions)  # a style sheet for the whole page
        for element in root.iter():
            self._rewrite(element)
        root.set("viewBox", f"0 0 {self.width:g} {self.height:g}")
        root.set("width", f"{self.width:g}")
        root.set("height", f"{self.height:g}")
        root.set("role", "img")
        root.set("aria-label", printable(title))
        root.set("stroke-linejoin", "round")
        return Markup(ElementTree.tostring(root, encoding="unicode"))

    def _rewrite(self, element: ElementTree.Element) -> None:
        element.tag = element.tag.removeprefix(_SVG)
        name = element.attrib.pop("id", None)
        if name in self.names:
            for text in element.iter(f"{_SVG}text"):
                text.text = self.names[name]
        if element.tag in ("path", "clipPath") and name:
            element.set("id", f"{self.name}-{name}")
        if link := element.attrib.pop(_LINK, None):
            element.set("href", f"#{self.name}-{link[1:]}" if link.startswith("#") else "".join(link.split()))
        if clip := element.get("clip-path"):
            element.set("clip-path", clip.replace("#", f"#{self.name}-"))
        for declaration in element.attrib.pop("style", "").split(";"):
            key, _, value = declaration.partition(":")
            if key.strip() and key.strip() not in ("font-family", "stroke-linejoin", "stroke-linecap"):
                element.set(key.strip(), _in_page(value.strip()))
        if "d" in element.attrib:
            element.set("d", _SPACES.sub(" ", element.attrib["d"]).strip())
        if element.tag == "text" and element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        element.tail = None


_SPACES = re.compile(r"\s+")


def _in_page(value: str) -> str:
    return f"var({VARIABLES[value]})" if value in VARIABLES else value


@contextmanager
def drawing(name: str, height: float, width: float = WIDTH) -> Iterator[Drawing]:
    """A figure to draw on, in the page's style; whoever uses matplotlib besides finds its own as it was."""
    with matplotlib.rc_context(_STYLE):
        yield Drawing(name, width, height)
