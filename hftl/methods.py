"""The methods of a recipe and their options: what a user may say about how the model is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Options(BaseModel):
    """A set of named options that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Head(Options):
    """Train only the head, on features of the frozen backbone that are computed once.

    Attributes:
        pooling: what of the backbone the head reads: ``"native"`` for what the model's own head reads (exported in the model's own
            class), or the ``"mean"`` or first (``"cls"``) token of its last layer (texts: exported for sentence-transformers).
        strengths: L2 strengths to choose from, any order; None for a path of 20.
        folds: stratified folds on which the strength is chosen, where the data bring no validation split.
        rule: ``"best"`` mean, or ``"one_se"`` for the strongest within one standard error of it.
        class_weight: ``"balanced"``, or one weight for each class in the order of the label names.
        calibrate: scale the logits by a temperature fitted on held-out rows.
    """

    name: Literal["head"] = "head"
    pooling: Literal["native", "mean", "cls"] = "native"
    strengths: list[float] | None = Field(default=None, min_length=1)
    folds: int = Field(default=5, ge=2)
    rule: Literal["best", "one_se"] = "best"
    class_weight: Literal["balanced"] | list[float] | None = None
    calibrate: bool = True

    @field_validator("strengths")
    @classmethod
    def _positive(cls, strengths: list[float] | None) -> list[float] | None:
        if strengths and not all(s > 0 for s in strengths):
            raise ValueError("strengths are positive")
        return strengths


METHODS: dict[str, type[Head]] = {"head": Head}
