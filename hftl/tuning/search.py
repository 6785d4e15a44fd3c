"""What tuning may try: ``--search FIELD=RANGE`` as dimensions, checked against the recipe before a trial starts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import UnionType
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from hftl.errors import RecipeError
from hftl.methods import METHODS
from hftl.recipes import Recipe, changed, field_names
from hftl.wording import did_you_mean, printable, suggest

Value: TypeAlias = int | float | str
"""A value of a trial: a number of a range, or a choice as a person writes it."""

# All other fields say which rows there are and how they are judged, and scores on other rows do not compare.
TRIED = ("backbone", "depth", "max_length", "method")
WAYS = "LOW..HIGH, LOW..HIGH:log, LOW..HIGH:STEP, or choices A,B,C"


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included.

    Attributes:
        field: the recipe's field, dotted.
        low: the smallest.
        high: the largest.
        log: whether orders of magnitude are tried evenly.
        step: between neighbours; None for any number between.
        whole: whether they are whole numbers.
    """

    field: str
    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    @property
    def size(self) -> float:
        """How many values there are."""
        if self.log or (self.step is None and not self.whole):
            return math.inf
        return math.floor((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    def values(self) -> list[Value]:
        """All values of a finite range."""
        return [self._number(self.low + (self.step or 1) * place) for place in range(int(self.size))]

    def suggested(self, trial: Any) -> Value:
        """What Optuna suggests to a trial."""
        if self.whole:
            step = int(self.step or 1)
            return int(trial.suggest_int(self.field, int(self.low), int(self.high), step=step, log=self.log))
        return float(trial.suggest_float(self.field, self.low, self.high, step=self.step, log=self.log))

    def own(self, value: object) -> Value | None:
        """The recipe's own value, where the range has it."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return None
        place = (value - self.low) / self.step if self.step and not self.log else 0.0
        return self._number(value) if abs(place - round(place)) < 1e-9 else None

    def ends(self) -> list[Value]:
        """Values that the recipe must take."""
        return [self._number(self.low), self._number(self.high)]

    def _number(self, value: float) -> Value:
        return int(value) if self.whole else float(value)

    def __str__(self) -> str:
        how = ":log" if self.log else f":{self.step:g}" if self.step is not None else ""
        return f"{self.field}={self.low:g}..{self.high:g}{how}"


@dataclass(frozen=True)
class Choices:
    """Some values.

    Attributes:
        field: the recipe's field, dotted.
        texts: the values as a person writes them.
    """

    field: str
    texts: tuple[str, ...]

    @property
    def size(self) -> float:
        """How many values there are."""
        return len(self.texts)

    def values(self) -> list[Value]:
        """All of them."""
        return [*self.texts]

    def suggested(self, trial: Any) -> Value:
        """What Optuna suggests to a trial."""
        return str(trial.suggest_categorical(self.field, self.texts))

    def own(self, value: object) -> Value | None:
        """The recipe's own value, where it is one of them."""
        spelt = value if isinstance(value, str) else json.dumps(value, default=str)
        return next((text for text in self.texts if text == spelt or _same_number(text, value)), None)

    def ends(self) -> list[Value]:
        """Values that the recipe must take."""
        return self.values()

    def __str__(self) -> str:
        return f"{self.field}={','.join(self.texts)}"


Dimension: TypeAlias = Range | Choices


@dataclass(frozen=True)
class Search:
    """What may be tried.

    Attributes:
        dimensions: of the fields, in the order in which they were given.
    """

    dimensions: tuple[Dimension, ...]

    @property
    def size(self) -> float:
        """How many combinations there are."""
        return math.prod(each.size for each in self.dimensions)

    def combinations(self) -> Iterator[dict[str, Value]]:
        """All of them, where they are finitely many."""
        for values in product(*(each.values() for each in self.dimensions)):
            yield {each.field: value for each, value in zip(self.dimensions, values, strict=True)}

    def suggested(self, trial: Any) -> dict[str, Value]:
        """One combination, as Optuna suggests it to a trial."""
        return {each.field: each.suggested(trial) for each in self.dimensions}

    def own(self, recipe: Recipe) -> dict[str, Value] | None:
        """The recipe as it stands, as a combination; None where one of its values is not among those to try."""
        own = {each.field: each.own(_value_of(recipe, each.field)) for each in self.dimensions}
        known = {field: value for field, value in own.items() if value is not None}
        return known if len(known) == len(own) else None

    def ends(self, field: str) -> list[Value]:
        """The outermost values of a field's range, or all of its choices; none where it is not searched."""
        return next((each.ends() for each in self.dimensions if each.field == field), [])

    def spelt(self) -> dict[str, str]:
        """Each field's part, as a person writes it."""
        return {each.field: str(each).partition("=")[2] for each in self.dimensions}


def search_of(asked: Mapping[str, str | Sequence[Any]], recipe: Recipe) -> Search:
    """Read what may be tried, and see that the recipe takes it.

    Args:
        asked: by field, what ``--search`` has behind the ``=``, or a list of values.
        recipe: the recipe whose fields they are.

    Raises:
        RecipeError: there is nothing to try, a field is unknown or must be the same in all trials, a range cannot be
            read, or the recipe refuses a value.
    """
    if not asked:
        raise RecipeError(f"there is nothing to search: add --search FIELD=RANGE, with {WAYS}")
    dimensions = [_dimension(field.strip(), how, recipe) for field, how in asked.items()]
    methods = Search(tuple(dimensions)).ends("method") or [recipe.method.name]
    for each in dimensions:
        for value, method in product(each.ends(), methods):
            chosen = {} if method == recipe.method.name else {"method": method}
            try:
                changed(recipe, {**chosen, each.field: value})
            except RecipeError as error:
                raise RecipeError(f"--search {printable(each)}: {error}") from error
    return Search(tuple(dimensions))


def searched(assignments: Sequence[str]) -> dict[str, str]:
    """``--search FIELD=RANGE`` of a command line, by field.

    Raises:
        RecipeError: there is no ``=``, or a field stands twice.
    """
    asked: dict[str, str] = {}
    for assignment in assignments:
        field, equals, how = assignment.partition("=")
        if not equals or not how.strip():
            raise RecipeError(f"--search {assignment!r}: write FIELD=RANGE, with {WAYS}")
        if field.strip() in asked:
            raise RecipeError(f"--search {field.strip()} stands twice: give all of its values at once")
        asked[field.strip()] = how.strip()
    return asked


def _dimension(field: str, how: str | Sequence[Any], recipe: Recipe) -> Dimension:
    _refuse_other_fields(field)
    if not isinstance(how, str):
        return _choices(field, [_as_text(each) for each in how])
    low, dots, rest = how.partition("..")
    # A backbone's path may hold two dots, behind no number.
    if dots and (_number(low) is not None or field != "backbone"):
        return _range(field, how, low, rest, recipe)
    return _choices(field, _separated(how))


def _refuse_other_fields(field: str) -> None:
    if field.partition(".")[0] not in TRIED:
        if field in field_names():
            raise RecipeError(
                f"--search {field}: it must be the same in all trials, or their scores would not compare; what can be "
                f"searched is {', '.join(TRIED)} and the fields of the method, such as method.lr"
            )
        inner = f"method.{field}"
        close = suggest([inner]) if inner in field_names() else did_you_mean(field, field_names())
        raise RecipeError(f"--search {field}: the recipe has no field of that name{close}")


def _choices(field: str, texts: Sequence[str]) -> Choices:
    unique = tuple(dict.fromkeys(texts))
    if len(unique) < 2:
        raise RecipeError(f"--search {field}: one value is nothing to choose from; set it with --set {field}=VALUE")
    return Choices(field, unique)


def _separated(how: str) -> list[str]:
    """Values between commas; those in brackets, which are JSON, keep theirs."""
    try:
        read = json.loads(f"[{how}]")
    except ValueError:
        return [text.strip() for text in how.split(",") if text.strip()]
    # Numbers as they are written: 1e-4 is not to become 0.0001 on the screen.
    plain = not any(isinstance(each, (list, dict, str)) for each in read)
    return [text.strip() for text in how.split(",")] if plain else [_as_text(each) for each in read]


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _range(field: str, how: str, first: str, rest: str, recipe: Recipe) -> Range:
    last, colon, kind = rest.partition(":")
    low, high = _number(first), _number(last)
    if low is None or high is None or (colon and not kind):
        raise RecipeError(f"--search {field}={how}: cannot be read; write {WAYS}")
    if low >= high:
        raise RecipeError(f"--search {field}={how}: the range is empty; write the smaller number first")
    numbers = _kinds_of_number(_annotation(field, recipe))
    if not numbers:
        raise RecipeError(f"--search {field}={how}: the field takes no numbers; list choices, A,B,C")
    whole, log = float not in numbers, kind == "log"
    if whole and not (low.is_integer() and high.is_integer()):
        raise RecipeError(f"--search {field}={how}: the field takes whole numbers")
    if log and low <= 0:
        raise RecipeError(f"--search {field}={how}: a range of orders of magnitude begins above 0")
    step = None if log or not colon else _number(kind)
    if colon and not log and (step is None or step <= 0 or step > high - low or (whole and not step.is_integer())):
        raise RecipeError(f"--search {field}={how}: behind the colon stands log, or a step that fits into the range")
    # What no step reaches would be promised and never tried.
    if step and abs((high - low) / step - round((high - low) / step)) > 1e-9:
        raise RecipeError(f"--search {field}={how}: no whole number of steps leads from {low:g} to {high:g}")
    return Range(field, low, high, log, step, whole)


def _annotation(field: str, recipe: Recipe) -> Any:
    """The type of a field; of one that only another method has, that method's."""
    outer, _, inner = field.partition(".")
    if outer != "method":
        return Recipe.model_fields[outer].annotation
    models = [METHODS[recipe.method.name], *METHODS.values()]
    return next((model.model_fields[inner].annotation for model in models if inner in model.model_fields), None)


def _kinds_of_number(annotation: Any) -> set[type]:
    """Which of int and float a type admits."""
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*map(_kinds_of_number, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _kinds_of_number(get_args(annotation)[0])
    return {annotation} & {int, float} if isinstance(annotation, type) else set()


def _value_of(recipe: Recipe, field: str) -> object:
    """What the recipe has there; of a method its name."""
    if field == "method":
        return recipe.method.name
    found: Any = recipe
    for name in field.split("."):
        found = found.get(name) if isinstance(found, dict) else getattr(found, name, None)
    return found


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _same_number(text: str, value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _number(text) == value
