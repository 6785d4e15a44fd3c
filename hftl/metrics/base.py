"""What all metrics here share: they work with no network and leave nothing on the disk."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from hftl.metrics.values import Array, Result


class LocalMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """A metric that is created by its class: ``evaluate.load`` would ask the Hub for it.

    Subclasses give ``about`` and ``accepts``, and implement ``_compute``.

    Args:
        options: as of `evaluate.Metric`; predictions are kept in memory unless they say otherwise.
    """

    about: str
    accepts: Sequence[datasets.Features]

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **options})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.about,
            citation="",
            inputs_description="",
            features=list(self.accepts),
        )

    def of(self, predictions: Array, references: Array, **options: Any) -> Result:
        """`compute` on arrays that are whole already, without the Arrow tables that copy every number first."""
        result: Result = self._compute(predictions, references, **options)
        return result

    def _build_data_dir(self) -> str:
        # evaluate would make a folder in the user's cache even where nothing is to be stored there.
        return "" if self.keep_in_memory else str(super()._build_data_dir())


def metric_features(kind: str, *, rows_are_lists: bool = False) -> datasets.Features:
    """Return the features of predictions and references of one kind."""
    value = datasets.Value(kind)
    column = datasets.Sequence(value) if rows_are_lists else value
    return datasets.Features({"predictions": column, "references": column})
