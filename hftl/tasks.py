"""`Task`: what the labels of a data set are, and everything that depends on it.

No other module compares a task's name: it asks the task, or gives `Task.case` one answer for each kind, so that a new
kind cannot be forgotten anywhere. This module imports neither torch nor numpy; tensors bring their own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from hftl.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

T = TypeVar("T")

ClassWeight = Literal["balanced"] | Sequence[float] | None
Link = Literal["softmax", "sigmoid", "identity"]


class Task(str, Enum):
    """What labels are; a str, so that plugins and JSON see the plain name.

    ``single_label``: (n,) int64 class numbers. ``multi_label``: (n, C) float32 of 0 and 1. ``regression``: (n, C)
    float32 targets.
    """

    SINGLE_LABEL = "single_label"
    MULTI_LABEL = "multi_label"
    REGRESSION = "regression"

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return repr(self.value)

    def case(self, *, single_label: T, multi_label: T, regression: T) -> T:
        """The one of three answers that is this task's."""
        answers = {Task.SINGLE_LABEL: single_label, Task.MULTI_LABEL: multi_label, Task.REGRESSION: regression}
        return answers[self]

    # ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def words(self) -> str:
        """The task for a person: ``single label``."""
        return self.value.replace("_", " ")

    @property
    def has_classes(self) -> bool:
        """Whether outputs are classes or labels, not targets."""
        return self is not Task.REGRESSION

    @property
    def is_exclusive(self) -> bool:
        """Whether a row has exactly one of the classes."""
        return self is Task.SINGLE_LABEL

    # ── in transformers ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def problem_type(self) -> str:
        """The ``problem_type`` of a transformers configuration."""
        return self.case(
            single_label="single_label_classification",
            multi_label="multi_label_classification",
            regression="regression",
        )

    @classmethod
    def of_problem_type(cls, problem_type: str | None, num_labels: int) -> Task:
        """The task of a transformers configuration.

        Args:
            problem_type: what it states; None for nothing.
            num_labels: its outputs. One output that is no regression's is a label that a row has or not, as in
                transformers' pipelines: a softmax of one number would always be 1.
        """
        if num_labels == 1 and problem_type != cls.REGRESSION.problem_type:
            return cls.MULTI_LABEL
        return next((task for task in cls if task.problem_type == problem_type), cls.SINGLE_LABEL)

    # ── labels and logits ────────────────────────────────────────────────────────────────────────────────────────────

    def label_shape(self, rows: int, num_labels: int) -> tuple[int, ...]:
        """The shape of the labels of so many rows."""
        return (rows,) if self.is_exclusive else (rows, num_labels)

    @property
    def link(self) -> Link:
        """The function from logits to what is reported; its name also says which loss belongs to it."""
        links: dict[Task, Link] = {
            Task.SINGLE_LABEL: "softmax",
            Task.MULTI_LABEL: "sigmoid",
            Task.REGRESSION: "identity",
        }
        return links[self]

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (n, C) as what a pipeline reports: float32 probabilities of classes or labels, or the targets."""
        logits = logits.float()
        apply: Callable[[], Tensor] = self.case(
            single_label=lambda: logits.softmax(-1), multi_label=lambda: logits.sigmoid(), regression=lambda: logits
        )
        return apply()

    def predicted(
        self, scores: np.ndarray, names: Sequence[str], thresholds: Sequence[float] | None = None
    ) -> list[Any]:
        """What is predicted for each row of scores (n, C): a name, a list of names, or a list of C numbers.

        Args:
            scores: as `scores` gives them.
            names: of the C outputs.
            thresholds: of several labels, one each, above which a label is predicted; None for 0.5.
        """
        name: Callable[[], list[Any]] = self.case(
            single_label=lambda: [names[i] for i in scores.argmax(1)],
            multi_label=lambda: _names_of(scores > (0.5 if thresholds is None else thresholds), names),
            regression=scores.tolist,
        )
        return name()

    def truth(self, labels: np.ndarray, names: Sequence[str]) -> list[Any]:
        """Labels as `predicted` gives predictions."""
        name: Callable[[], list[Any]] = self.case(
            single_label=lambda: [names[i] for i in labels],
            multi_label=lambda: _names_of(labels > 0.5, names),
            regression=labels.tolist,
        )
        return name()

    # ── what chooses ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def directions(self) -> Mapping[str, bool]:
        """The metrics of a run's predictions that are one number each, and whether more of it is better."""
        return self.case(
            single_label={"accuracy": True, "f1_macro": True, "f1_weighted": True, "log_loss": False},
            multi_label={"map": True, "f1_macro": True, "f1_micro": True, "subset_accuracy": True, "log_loss": False},
            regression={"r2": True, "pearson": True, "spearman": True, "mse": False, "rmse": False, "mae": False},
        )

    @property
    def metric(self) -> str:
        """The metric that chooses where a recipe names none; more is better for all of them."""
        return self.case(single_label="accuracy", multi_label="map", regression="r2")

    @property
    def tie_breaker(self) -> str:
        """The metric that decides where `metric` is the same; less is better."""
        return self.case(single_label="log_loss", multi_label="log_loss", regression="mse")

    # ── class weights ────────────────────────────────────────────────────────────────────────────────────────────────

    def class_weights(self, given: ClassWeight, labels: Tensor, num_labels: int) -> Tensor | None:
        """The weight of each class in a loss.

        ``"balanced"`` is scikit-learn's ``compute_class_weight``: ``rows / (classes * count)`` over the classes that
        occur. Each label of a multi-label task is a problem of two classes.

        Args:
            given: ``"balanced"``, or one number for each class (multi-label: for the rows that have the label).
            labels: of the training rows.
            num_labels: classes or labels.

        Returns:
            float64 on the labels' device: (C,) for one label a row, (2, C) for several (without and with the label);
            None where no weights are given.

        Raises:
            RecipeError: there are no classes, or the number of weights is not theirs.
        """
        if given is None:
            return None
        if not self.has_classes:
            raise RecipeError("class_weight: a regression has no classes; leave it out")
        if isinstance(given, str):
            if given != "balanced":
                raise RecipeError(f"class_weight: expected 'balanced' or {num_labels} numbers, got {given!r}")
            if self.is_exclusive:
                return _balanced(labels.bincount(minlength=num_labels).double())
            positive = labels.double().sum(0)
            return _balanced(_stacked(len(labels) - positive, positive))
        weights = labels.double().new_tensor([float(weight) for weight in given])
        if len(given) != num_labels:
            raise RecipeError(f"class_weight: expected {num_labels} numbers, one for each label, got {len(given)}")
        return weights if self.is_exclusive else _stacked(weights.new_ones(num_labels), weights)


def _names_of(chosen: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    return [[name for name, is_chosen in zip(names, row, strict=True) if is_chosen] for row in chosen]


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    stacked: Tensor = first.new_zeros(2, len(first))
    stacked[0], stacked[1] = first, second
    return stacked


def _balanced(counts: Tensor) -> Tensor:
    """``rows / (classes * count)`` of counts (C,) or (2, C), whose first dimension runs over the classes."""
    occurring = (counts > 0).sum(0)
    return counts.sum(0) / (occurring * counts.clamp(min=1))
