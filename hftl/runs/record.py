"""`RunRecord` and `Metrics`: the content of ``recipe.json`` and ``metrics.json``, typed, for whoever reads a run.

Card, push, predict and evaluate read runs by these alone. Fields that a newer hftl adds are ignored here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hftl.criterion import Criterion
from hftl.tasks import Task

if TYPE_CHECKING:
    from hftl.intervals import Interval

RECORD = "recipe.json"


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class BackboneRecord(_Record):
    """The pretrained network that a run began with.

    Attributes:
        name: what a person calls it; a Hub id where there is a commit.
        commit: the resolved commit; None for local files.
        plugin: the package that registered it.
        plugin_version: that package's version.
        pipeline_tag: the Hub's task name of the exported model.
        license: what its card states: ``license``, ``license_name``, ``license_link``, those given.
        pickled: whether its weights were published as a pickle.
        max_length: tokens kept of a text; None where rows are not cut.
        pooling: of a base model without a classification class how its output is pooled, ``kind`` and ``skip``; see
            `hftl.backbones.pooling.Pooled`. None where the class has a head of its own.
        identity: model and preprocessing, as they name the feature space.
    """

    name: str
    commit: str | None
    plugin: str = ""
    plugin_version: str = ""
    pipeline_tag: str
    license: dict[str, str]
    pickled: bool = False
    max_length: int | None = None
    pooling: dict[str, Any] | None = None
    identity: dict[str, Any]


class DataRecord(_Record):
    """The data that a run was made of.

    Attributes:
        identity: reference, commit or files, columns, digests.
        task: what the labels are.
        label_names: names of the classes or targets.
        rows: of each split.
        notes: what was inferred, dropped or made.
    """

    identity: dict[str, Any]
    task: Task
    label_names: list[str]
    rows: dict[str, int]
    notes: list[str]


class RunRecord(_Record):
    """What a run was made of; the content of ``recipe.json``.

    Attributes:
        name: the recipe's name.
        recipe: every field of the recipe, resolved; ``method`` is a mapping with the method's ``name`` and options.
        backbone: the pretrained network.
        data: the data.
        versions: of hftl and the libraries that it stands on.
        platform: operating system and processor.
        hardware: what it computed on, for people.
        started_in: the folder that relative paths in the recipe begin at.
        started: when, ISO 8601 with the offset from UTC; empty in records that do not say.
        cv: how rows were dealt for cross-validation, such as ``5x3``; None where a test split was scored.
        trust_features: origins of foreign features that the run was told to use.
    """

    name: str
    recipe: dict[str, Any]
    backbone: BackboneRecord
    data: DataRecord
    versions: dict[str, str]
    platform: str = ""
    hardware: str = ""
    started_in: str = ""
    started: str = ""
    cv: str | None = None
    trust_features: list[str] = Field(default_factory=list)

    @field_validator("recipe")
    @classmethod
    def _names_what_is_read(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        method = recipe.get("method")
        if not {"backbone", "data", "method"} <= recipe.keys() or not isinstance(method, dict) or "name" not in method:
            raise ValueError("its recipe names no backbone, data and method")
        return recipe

    @property
    def method(self) -> Mapping[str, Any]:
        """The method's name and options."""
        method: Mapping[str, Any] = self.recipe["method"]
        return method

    @property
    def criterion(self) -> Criterion:
        """The metric that chose; the task's own in records that name none."""
        task, name = self.data.task, self.recipe.get("metric")
        if not name:
            return Criterion.of_task(task)
        return Criterion(task, str(name), bool(self.recipe.get("greater_is_better", True)), is_stated=True)

    @property
    def backbone_reference(self) -> str:
        """What to write for the same backbone: at the same commit, where the Hub has it."""
        given = str(self.recipe["backbone"])
        base, commit = given.partition("@")[0], self.backbone.commit
        # A plugin's own name for a model says nothing of the Hub; the plugin decides which commit it stands for.
        return f"{base}@{commit}" if commit and base.endswith(self.backbone.name) else given

    @property
    def data_on_hub(self) -> str | None:
        """The data as ``user/name[:config]``; None where they are not on the Hub."""
        identity = self.data.identity
        if not is_repo_id(identity.get("repo")):
            return None
        stated = ":" in str(self.recipe["data"]).partition("@")[0]
        return f"{identity['repo']}:{identity['config']}" if stated else str(identity["repo"])

    @property
    def data_reference(self) -> str:
        """What to write for the same data: at the same commit, where the Hub has them."""
        on_hub, commit = self.data_on_hub, self.data.identity.get("commit")
        return str(self.recipe["data"]) if on_hub is None else f"{on_hub}@{commit}" if commit else on_hub

    @property
    def input_columns(self) -> list[str] | None:
        """The columns that rows were read from, two for pairs of texts; None in records that do not say."""
        return self._columns("inputs")

    @property
    def label_columns(self) -> list[str] | None:
        """The columns that labels were read from; None in records that do not say."""
        return self._columns("labels")

    def _columns(self, part: str) -> list[str] | None:
        columns: list[str] | None = self.data.identity.get("columns", {}).get(part)
        return columns

    def as_json(self) -> dict[str, Any]:
        """The content of ``recipe.json``."""
        return self.model_dump(mode="json")


class Metrics(_Record):
    """What came out of a run; the content of ``metrics.json``.

    Attributes:
        eval: metrics on the test split.
        chosen_by: the metric that chose, and whether more of it is better: ``{"metric": …, "greater_is_better": …}``;
            empty in runs of a release that did not record it.
        intervals: how sure they are: ``level``, what was ``drawn`` (rows or groups), how many ``units`` there are,
            ``samples``, and ``of`` each metric the low and the high end; empty in older runs.
        cross_validation: what ``--cv`` scored, and how; None where a test split was scored.
        out_of_scope: how well scores tell rows of a ``label`` that is no class from test rows: ``rows`` with it,
            ``against`` so many, ``auroc`` of each score and its ``intervals``; None where no label is out of scope.
        test_views: metrics of the mean probabilities of several views of each test picture: how many ``views``, by what
            ``augmentation``, and ``eval`` of the metrics; None where there is only one.
        features: rows asked for, computed, reused and truncated, and the space's id; ``views_computed`` where pictures
            have several; ``rounding``, the largest relative error, where they were rounded now; ``foreign`` where rows
            were read from spaces that were made elsewhere: the ``origin`` of each, its ``commit``, ``space``, ``rows``
            and ``checked``.
        head: what the training of a head reports; None for fine-tuning.
        finetune: what fine-tuning reports; None for a head.
        rows: of each split, without those that could not be decoded.
        seconds: of ``extract``, ``train`` and ``total``.
        files: size and checksum of each exported file, by its path in the run's folder; empty in runs of a release that
            did not record them.
    """

    eval: dict[str, Any]
    features: dict[str, Any]
    chosen_by: dict[str, Any] = Field(default_factory=dict)
    intervals: dict[str, Any] = Field(default_factory=dict)
    cross_validation: dict[str, Any] | None = None
    out_of_scope: dict[str, Any] | None = None
    test_views: dict[str, Any] | None = None
    head: dict[str, Any] | None = None
    finetune: dict[str, Any] | None = None
    rows: dict[str, int] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def is_by_folds(self) -> bool:
        """Whether models of folds were scored in place of the exported one."""
        return bool((self.cross_validation or {}).get("in_place_of_a_test_split"))

    @property
    def scored_rows(self) -> int:
        """How many rows `eval` is of: the test split's, or those that folds scored in its place."""
        by_folds = self.cross_validation or {}
        return int(by_folds["rows"] if self.is_by_folds else self.rows.get("test", 0))

    @property
    def training(self) -> dict[str, Any]:
        """What the training of a head, or fine-tuning, reports."""
        return self.head or self.finetune or {}

    @property
    def foreign(self) -> list[tuple[str, int]]:
        """Where features were read from that were made elsewhere, as a page names it, and how many rows.

        Of a folder or an address only the last name: the rest is nobody's business.
        """
        told = [(str(each["origin"]), each["commit"], int(each["rows"])) for each in self.features.get("foreign", [])]
        named = [(f"{name} at {commit}" if commit else PurePath(name).name, rows) for name, commit, rows in told]
        return [(name, rows) for name, rows in named if rows]

    def known_intervals(self) -> dict[str, Interval]:
        """The 95 % interval of each metric that has one."""
        # Brought only here: it brings numpy, which a command that lists its flags does not need.
        from hftl.intervals import Interval

        ends: dict[str, list[float]] = self.intervals.get("of", {})
        return {name: Interval(self.eval[name], low, high) for name, (low, high) in ends.items()}

    def scope_scores(self) -> dict[str, Interval]:
        """The AUROC of each score for "none of these", with its interval, by a name for people."""
        from hftl.intervals import Interval

        report = self.out_of_scope or {"auroc": {}}
        return {
            f"AUROC of {name.replace('_', ' ')}": Interval(value, *report["intervals"][name])
            for name, value in report["auroc"].items()
        }

    def as_json(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        optional = ("head", "finetune", "cross_validation", "out_of_scope", "test_views")
        return self.model_dump(mode="json", exclude={name for name in optional if getattr(self, name) is None})


def is_repo_id(name: object) -> bool:
    """Whether a name can be one of a repository on the Hub."""
    return isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name, re.ASCII) is not None
