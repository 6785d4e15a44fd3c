"""`Task`: what the labels of a data set are, and everything that depends on it.

No other module compares a task's name: it asks the task, or gives `Task.case` one answer for each kind, so that a new
kind cannot be forgotten anywhere. Importing this module brings neither torch nor numpy; tensors bring their own
operations.
"""

from __future__ import annotations

import math
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

# How transformers ends the names of classes that give logits for each token.
TOKEN_CLASS = "ForTokenClassification"


class Task(str, Enum):
    """What labels are; a str, so that plugins and JSON see the plain name.

    ``single_label``: (n,) int64 class numbers. ``multi_label``: (n, C) float32 of 0 and 1. ``regression``: (n, C)
    float32 targets. ``token_labels``: (n,) objects, for each sentence the int64 class numbers of its words; logits and
    scores are those of all words one after the other, (words, C).
    """

    SINGLE_LABEL = "single_label"
    MULTI_LABEL = "multi_label"
    REGRESSION = "regression"
    TOKEN_LABELS = "token_labels"

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return repr(self.value)

    def case(self, *, single_label: T, multi_label: T, regression: T, token_labels: T) -> T:
        """The one of four answers that is this task's."""
        answers = {
            Task.SINGLE_LABEL: single_label,
            Task.MULTI_LABEL: multi_label,
            Task.REGRESSION: regression,
            Task.TOKEN_LABELS: token_labels,
        }
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

    @property
    def of_words(self) -> bool:
        """Whether a row is a sentence, each word of which has a label."""
        return self is Task.TOKEN_LABELS

    @property
    def unit(self) -> Task:
        """The task of what one line of logits is about: of a sentence's words, each has one of the classes."""
        return Task.SINGLE_LABEL if self.of_words else self

    # ── in transformers ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def problem_type(self) -> str | None:
        """The ``problem_type`` of a transformers configuration; classes of models for words have none."""
        return self.case(
            single_label="single_label_classification",
            multi_label="multi_label_classification",
            regression="regression",
            token_labels=None,
        )

    @classmethod
    def of_config(cls, config: Any) -> Task:
        """The task of a transformers configuration: its class says whether words have labels.

        One output that is no regression's is a label that a row has or not, as in transformers' pipelines: a softmax of
        one number would always be 1.
        """
        if any(name.endswith(TOKEN_CLASS) for name in config.architectures or ()):
            return cls.TOKEN_LABELS
        problem_type, num_labels = config.problem_type, config.num_labels
        if num_labels == 1 and problem_type != cls.REGRESSION.problem_type:
            return cls.MULTI_LABEL
        return next((task for task in cls if problem_type and task.problem_type == problem_type), cls.SINGLE_LABEL)

    # ── labels and logits ────────────────────────────────────────────────────────────────────────────────────────────

    def label_shape(self, rows: int, num_labels: int) -> tuple[int, ...]:
        """The shape of the labels of so many rows."""
        return (rows, num_labels) if self in (Task.MULTI_LABEL, Task.REGRESSION) else (rows,)

    def by_line(self, labels: Any) -> np.ndarray:
        """Labels of rows as those of the lines of logits: of sentences those of all words, int64 (words,)."""
        import numpy as np

        if not self.of_words:
            return np.asarray(labels)
        empty = np.zeros(0, dtype="int64")
        return np.concatenate([empty, *labels])

    def by_row(self, lines: np.ndarray, labels: np.ndarray) -> Any:
        """What stands for each line of logits, (lines, …), for each row: of sentences one array for each."""
        if not self.of_words:
            return lines
        import numpy as np

        ends = np.cumsum([len(each) for each in labels])
        return np.split(lines, ends[:-1]) if len(labels) else []

    @property
    def link(self) -> Link:
        """The function from logits to what is reported; its name also says which loss belongs to it."""
        links: dict[Task, Link] = {
            Task.SINGLE_LABEL: "softmax",
            Task.MULTI_LABEL: "sigmoid",
            Task.REGRESSION: "identity",
            Task.TOKEN_LABELS: "softmax",
        }
        return links[self]

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (n, C) as what a pipeline reports: float32 probabilities of classes or labels, or the targets."""
        logits = logits.float()
        apply: Callable[[], Tensor] = self.case(
            single_label=lambda: logits.softmax(-1),
            multi_label=lambda: logits.sigmoid(),
            regression=lambda: logits,
            token_labels=lambda: logits.softmax(-1),
        )
        return apply()

    def averaged(self, logits: Tensor) -> Tensor:
        """Logits (k, n, C) of k views of each row as logits (n, C) whose scores are the mean of the views' scores."""
        logits = logits.double()

        def of_classes() -> Tensor:
            return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))

        mean: Callable[[], Tensor] = self.case(
            single_label=of_classes,
            multi_label=lambda: logits.sigmoid().mean(0).logit(eps=1e-15),
            regression=lambda: logits.mean(0),
            token_labels=of_classes,
        )
        return mean().float()

    def predicted(
        self, scores: np.ndarray, names: Sequence[str], thresholds: Sequence[float] | None = None
    ) -> list[Any]:
        """What is predicted for each line of scores (n, C): a name, a list of names, or a list of C numbers.

        Args:
            scores: as `scores` gives them.
            names: of the C outputs.
            thresholds: of several labels, one each, above which a label is predicted; None for 0.5.
        """
        name: Callable[[], list[Any]] = self.case(
            single_label=lambda: [names[i] for i in scores.argmax(1)],
            multi_label=lambda: _names_of(scores > (0.5 if thresholds is None else thresholds), names),
            regression=scores.tolist,
            token_labels=lambda: [names[i] for i in scores.argmax(1)],
        )
        return name()

    def truth(self, labels: np.ndarray, names: Sequence[str]) -> list[Any]:
        """Labels of rows as `predicted` gives predictions; of sentences a list of the names of each one's words."""
        name: Callable[[], list[Any]] = self.case(
            single_label=lambda: [names[i] for i in labels],
            multi_label=lambda: _names_of(labels > 0.5, names),
            regression=labels.tolist,
            token_labels=lambda: [[names[i] for i in row] for row in labels],
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
            token_labels={"f1": True, "precision": True, "recall": True, "accuracy": True, "log_loss": False},
        )

    def bounds(self, metric: str) -> tuple[float, float]:
        """What no value of one of these metrics lies below, and above; infinite of any other metric."""
        more_is_better = self.directions.get(metric)
        if not more_is_better:
            return (-math.inf if more_is_better is None else 0.0), math.inf
        lowest = -1.0 if metric in ("pearson", "spearman") else -math.inf
        return (0.0 if self.has_classes else lowest), 1.0

    @property
    def metric(self) -> str:
        """The metric that chooses where a recipe names none; more is better for all of them."""
        return self.case(single_label="accuracy", multi_label="map", regression="r2", token_labels="f1")

    @property
    def tie_breaker(self) -> str:
        """The metric that decides where `metric` is the same; less is better."""
        return self.case(single_label="log_loss", multi_label="log_loss", regression="mse", token_labels="log_loss")

    # ── class weights ────────────────────────────────────────────────────────────────────────────────────────────────

    def class_weights(self, given: ClassWeight, labels: Tensor, num_labels: int) -> Tensor | None:
        """The weight of each class in a loss.

        ``"balanced"`` is scikit-learn's ``compute_class_weight``: ``rows / (classes * count)`` over the classes that
        occur. Each label of a multi-label task is a problem of two classes.

        Args:
            given: ``"balanced"``, or one number for each class (multi-label: for the rows that have the label).
            labels: of the training rows; of sentences those of all words (`by_line`).
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
            if self.unit.is_exclusive:
                return _balanced(labels.bincount(minlength=num_labels).double())
            positive = labels.double().sum(0)
            return _balanced(_stacked(len(labels) - positive, positive))
        weights = labels.double().new_tensor([float(weight) for weight in given])
        if len(given) != num_labels:
            raise RecipeError(f"class_weight: expected {num_labels} numbers, one for each label, got {len(given)}")
        return weights if self.unit.is_exclusive else _stacked(weights.new_ones(num_labels), weights)


def for_whole_rows() -> Any:
    """The answer of a question that is not asked of sentences whose words have labels.

    Raises:
        RecipeError: always.
    """
    raise RecipeError("each word has a label here, and this question is answered for whole rows only")


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
