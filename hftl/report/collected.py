"""`Collected`: the content of ``report.json``, what only the living run knew of its rows, for its page."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hftl.errors import HftlError
from hftl.wording import one_line

COLLECTED = "report.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ShownRow(_Part):
    """A row as a page shows it.

    Attributes:
        split: where it is.
        name: what a person calls it.
        label: its label in words.
        texts: one text, or two of a pair; cut where they are long.
        words: of a sentence whose words have labels, in place of texts; of a long one those about its first mistake.
        before: how many words stand before these in the sentence.
        after: how many stand behind them.
        picture: a ``data:`` address of a small version.
        missing: why there is neither text nor picture.
    """

    split: str
    name: str
    label: str
    texts: list[str] = Field(default_factory=list)
    words: list[str] = Field(default_factory=list)
    before: int = 0
    after: int = 0
    picture: str = ""
    missing: str = ""


class NearRow(_Part):
    """A training row near to another one.

    Attributes:
        shown: its place in `Collected.rows`.
        cosine: of the centred features of the two.
    """

    shown: int
    cosine: float


class WorstRow(_Part):
    """A row of the test split that was predicted badly.

    Attributes:
        row: its place in the test split, and in ``predictions.parquet``.
        shown: its place in `Collected.rows`.
        near: the training rows nearest to it, the nearest first.
    """

    row: int
    shown: int
    near: list[NearRow]


class Suspect(_Part):
    """A row whose label a head that has not seen it would not give.

    Attributes:
        shown: its place in `Collected.rows`.
        suggested: what it rather is.
        why: the reason in words.
    """

    shown: int
    suggested: str
    why: str


class Copy(_Part):
    """A row that another split has too.

    Attributes:
        shown: its place in `Collected.rows`.
        other: the place of the row that it is a copy of.
        similarity: 1 where they are the same.
        exact: whether they are.
    """

    shown: int
    other: int
    similarity: float
    exact: bool


class LikelyWrong(_Part):
    """Likely wrong labels.

    Attributes:
        judged: how many rows of each split were judged.
        listed: how many of them look wrong.
        first: the surest of these.
    """

    judged: dict[str, int]
    listed: dict[str, int]
    first: list[Suspect]


class CopiesAcross(_Part):
    """Rows of later splits that stand in an earlier one too.

    Attributes:
        exact: how many rows are the same as one of another split, by ``test in train`` and so on.
        near: how many test rows are nearly the same as a training row, of those that were compared.
        compared: how many test rows were compared in full with their nearest training row.
        first: some of them.
    """

    exact: dict[str, int]
    near: int
    compared: int
    first: list[Copy]


class FeatureMap(_Part):
    """Rows of the test split on a plane.

    Attributes:
        method: ``PCA`` or ``UMAP``.
        explained: share of the variance on each of PCA's axes; empty for UMAP.
        rows: which rows of the test split.
        x: of each.
        y: of each.
    """

    method: str
    explained: list[float]
    rows: list[int]
    x: list[float]
    y: list[float]


class FreeScore(_Part):
    """What costs nothing on the same features, by the metric that chooses.

    Attributes:
        what: in words.
        value: the score.
        low: of its 95 % interval.
        high: of it.
    """

    what: str
    value: float
    low: float
    high: float


class Collected(_Part):
    """What only the living run knew.

    Attributes:
        rows: every row that the page shows, each once.
        worst: of the test split, the worst first.
        neighbours_of: how many training rows the nearest ones were looked for among.
        suspects: likely wrong labels.
        copies: across splits.
        map: of the features.
        free: scores that cost nothing, where ``metrics.json`` has none.
        peak_memory_bytes: of the process.
        missing: by the name of a part, why it is not there.
    """

    rows: list[ShownRow] = Field(default_factory=list)
    worst: list[WorstRow] = Field(default_factory=list)
    neighbours_of: int = 0
    suspects: LikelyWrong | None = None
    copies: CopiesAcross | None = None
    map: FeatureMap | None = None
    free: list[FreeScore] = Field(default_factory=list)
    peak_memory_bytes: int | None = None
    missing: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Collected | None:
        """What a run's folder has; None where the run kept nothing, as those of an older hftl.

        Raises:
            HftlError: the file is damaged.
        """
        file = folder / COLLECTED
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise HftlError(f"{file} is damaged ({one_line(error, 100)}); remove it, or run again") from error


def in_words(value: object) -> str:
    """A label, several labels or targets as one text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
