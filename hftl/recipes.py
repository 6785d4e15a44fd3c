"""`Recipe`: what a run is to do; `@recipe` for a Python file that makes one; how one is found and changed."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, ParamSpec, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_core import to_jsonable_python
from typing_extensions import Self

from hftl.errors import HftlError, RecipeError, UserError
from hftl.methods import F1, METHODS, Aim, Head, Method, Options, with_later_fields
from hftl.metric_functions import MetricLike, check_metrics
from hftl.plugins.manager import plugins
from hftl.rowrefs import RowRef
from hftl.tasks import Task
from hftl.wording import close_matches, did_you_mean, named_error, size_in_bytes, suggest

P = ParamSpec("P")
# Fields of a recipe that say nothing of what comes out.
OF_THE_MACHINE = frozenset({"memory"})

# Names of the modules that recipe files become begin with this.
OF_A_FILE = "hftl_recipe_"


class Recipe(Options):
    """What to do: a backbone, data, and a method.

    Attributes:
        backbone: a registered name, a Hub id ``user/name[@revision]``, or a folder.
        data: a Hub data set ``user/name[:config][@revision]``, a folder, a file (csv, tsv, jsonl, parquet, tar shards
            as ``train-{000..127}.tar``), an address of such files (``s3://…``), ``sample:NAME``; or what Python holds:
            a pandas or polars ``DataFrame``, a ``datasets.Dataset`` or ``DatasetDict``, a list of pairs (input, label),
            a dict of splits of these.
        method: how to train.
        task: ``"single_label"``, ``"multi_label"``, ``"regression"`` or ``"token_labels"``; None to infer it.
        input_columns: one column, or two for pairs of texts; None to infer.
        label_columns: the column (or columns) of labels; None to infer.
        unlabelled: labels that mark rows without one, which are left out, ``""`` for a missing label; None for -1 where
            the data name their classes, or where it stands beside class numbers and `task` is not stated. ``[]`` keeps
            every row.
        label_separator: what stands between several labels in one cell of a multi-label column; None for the first of
            ``|``, ``;`` and ``,`` that any cell holds.
        max_length: tokens kept of a text; None for what the model allows.
        depth: the backbone's first blocks (stages, where the architecture goes through stages) and its final norm, as a
            smaller model of the same class; ``"auto"`` for the shallowest that is as good as the best (`hftl.layers`);
            None for all of it.
        group: the column that says which rows belong together, such as those of one patient: none of them stand in two
            parts, in folds neither, and intervals draw groups; None where rows are independent.
        time: the column that says when rows are from: training is older than what is tested; None where time says
            nothing.
        stratify: the column of whose values every part has its share; None for the label.
        fold: the column that says which fold rows are in, where a strength is chosen or ``--cv`` scores; None to deal
            them.
        test_size: share of the rows set aside where the data bring no test split.
        validation_size: share of the training rows set aside to choose the strength or the epoch on, where the data
            bring no validation split; None for folds, and for the last epoch or what `patience` sets aside.
        at_precision: of several labels: decide each by the threshold that reaches this precision on held-out rows with
            the most hits; None for the largest F1.
        at_recall: of several labels: decide each by the threshold that reaches this recall on held-out rows with the
            largest precision; None for the largest F1.
        coverage: of one label a row: abstain where the highest probability is low, so that this share of held-out rows
            is answered; None to answer always.
        out_of_scope: the label of rows that are none of the classes: they are not trained on, and those that are tested
            measure scores for "none of these"; None where every label is a class.
        limit: rows of each split at most, for a quick try: drawn by the seed, of every class its share; None for all.
        seed: of every random choice.
        memory: what rows, their labels and features may take of the memory, such as ``"4G"``, beside libraries and the
            model's weights: where features do not fit, they are read in blocks; None for half of what is free.
        drop: rows to leave out: a csv file of them, as ``hftl audit --export`` writes it, which is read at once, so
            that a run's record names the rows themselves.
        metrics: functions that are computed beside hftl's own metrics, on the test split: ``function(y_true, y_pred)``
            or ``function(logits, labels, task)``, told apart by these names; see `hftl.metric_functions`.
        metric: the metric that chooses the strength of a head, the epoch, and what the scout advises: one of hftl's, of
            a plugin's or of ``metrics``; None for accuracy (mAP of several labels, r2 of numbers), and for the held-out
            loss along a path of strengths.
        greater_is_better: which way of ``metric`` is better, where that is a function that does not say so itself by an
            attribute of this name.
    """

    backbone: str
    data: Any
    method: Method = Head()
    task: Task | None = None
    input_columns: list[str] | None = Field(default=None, min_length=1, max_length=2)
    label_columns: list[str] | None = Field(default=None, min_length=1)
    unlabelled: list[str | int] | None = None
    label_separator: str | None = Field(default=None, min_length=1)
    max_length: int | None = Field(default=None, ge=1)
    depth: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    group: str | None = Field(default=None, min_length=1)
    time: str | None = Field(default=None, min_length=1)
    stratify: str | None = Field(default=None, min_length=1)
    fold: str | None = Field(default=None, min_length=1)
    test_size: float = Field(default=0.2, gt=0, lt=1)
    validation_size: float | None = Field(default=None, gt=0, lt=1)
    at_precision: float | None = Field(default=None, gt=0, le=1)
    at_recall: float | None = Field(default=None, gt=0, le=1)
    coverage: float | None = Field(default=None, gt=0, lt=1)
    out_of_scope: str | None = Field(default=None, min_length=1)
    limit: int | None = Field(default=None, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)
    memory: str | None = None
    drop: tuple[RowRef, ...] = ()
    metrics: tuple[MetricLike, ...] = ()
    metric: str | None = Field(default=None, min_length=1)
    greater_is_better: bool | None = None

    @model_validator(mode="after")
    def _aims_at_one_thing(self) -> Self:
        if self.at_precision is not None and self.at_recall is not None:
            raise ValueError("a threshold aims at a precision or at a recall: give at_precision or at_recall, not both")
        if self.coverage is not None and (self.at_precision is not None or self.at_recall is not None):
            raise ValueError("coverage is for one label a row, at_precision and at_recall are for several: give one")
        return self

    @property
    def aim(self) -> Aim:
        """What thresholds are chosen for."""
        if self.coverage is not None:
            return Aim("coverage", self.coverage)
        if self.at_precision is not None:
            return Aim("precision", self.at_precision)
        return F1 if self.at_recall is None else Aim("recall", self.at_recall)

    @field_validator("drop", mode="before")
    @classmethod
    def _reads_drop(cls, drop: Any) -> Any:
        if not isinstance(drop, (str, Path)):
            return drop or ()
        # Brought only here: a recipe without rows to drop is shown without reading pyarrow.
        from hftl.data.drop import read_row_refs

        return read_row_refs(Path(drop).expanduser())

    @field_validator("memory", mode="before")
    @classmethod
    def _is_size(cls, memory: Any) -> Any:
        # A bare number is told which unit it lacks.
        if isinstance(memory, (str, int, float)) and not isinstance(memory, bool):
            try:
                size = size_in_bytes(str(memory))
            except UserError as error:
                # Told with the field's name.
                raise ValueError(str(error)) from error
            if not size:
                raise ValueError(f"{memory!r} is no memory; write a number and its unit, such as 500M or 20G")
        return memory

    @field_validator("metrics")
    @classmethod
    def _are_metrics(cls, functions: tuple[MetricLike, ...]) -> tuple[MetricLike, ...]:
        check_metrics(functions)
        return functions

    @field_validator("data")
    @classmethod
    def _is_data(cls, data: Any) -> Any:
        if isinstance(data, (str, Path)):
            return str(data)
        # Brought only here: a recipe whose data have a reference is read without pyarrow.
        from hftl.data.objects import kind_of

        kind_of(data)
        return data

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """The fields; of data that are no reference only what they are, because all of them fill a screen."""
        for name, value in super().__repr_args__():
            yield name, _Unquoted(type(value).__name__) if name == "data" and not isinstance(value, str) else value


def fields_of_result(written: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe as it was written says of its result, to be compared with another.

    Fields that came later are what their defaults are; those that only say how much a machine may take are left out.

    Args:
        written: the fields as a record has them.
    """
    optional = {name: field for name, field in Recipe.model_fields.items() if not field.is_required()}
    defaults = {name: to_jsonable_python(field.get_default()) for name, field in optional.items() if name != "method"}
    known = defaults | dict(written)
    if "method" in known and known["method"].get("name") in METHODS:
        known["method"] = with_later_fields(known["method"])
    return {name: value for name, value in known.items() if name not in OF_THE_MACHINE}


class _Unquoted(str):
    """Text that `repr` shows in angle brackets."""

    def __repr__(self) -> str:
        return f"<{self}>"


class RecipeFunction(Generic[P]):
    """A function decorated with `@recipe`: called, it gives a `Recipe`; its keyword parameters become flags.

    Attributes:
        name: the function's name.
        folder: where its file is, if it was read from one: modules beside it can be imported; None otherwise.
        summary: the first line of its module's (or its own) docstring.
        parameters: each parameter's annotation and default.
    """

    def __init__(self, function: Callable[P, Recipe]) -> None:
        update_wrapper(self, function)
        self.folder: Path | None = None
        self._function = function
        self.name = function.__name__
        module = sys.modules.get(function.__module__)
        doc = inspect.getdoc(module) or inspect.getdoc(function) or ""
        self.summary = doc.strip().splitlines()[0] if doc.strip() else ""
        hints = get_type_hints(function)
        self.parameters: dict[str, tuple[Any, Any]] = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is parameter.empty or parameter.kind in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                raise RecipeError(
                    f"recipe {self.name!r}: parameter {parameter.name!r} needs a default, because it becomes a flag"
                )
            self.parameters[parameter.name] = (hints.get(parameter.name, str), parameter.default)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Recipe:
        """Call the recipe.

        Raises:
            RecipeError: it raised, or returned something that is no `Recipe`.
        """
        try:
            with modules_beside(self.folder):
                made = self._function(*args, **kwargs)
        except HftlError:
            raise
        except ValidationError as error:
            raise RecipeError(f"recipe {self.name!r}: {first_problem(error)}") from error
        except Exception as error:
            raise RecipeError(f"recipe {self.name!r} failed: {named_error(error)}") from error
        if not isinstance(made, Recipe):
            raise RecipeError(f"recipe {self.name!r} returned a {type(made).__name__}, not a Recipe")
        return made


def recipe(function: Callable[P, Recipe]) -> RecipeFunction[P]:
    """Make a function that returns a `Recipe` one that ``hftl run`` finds."""
    return RecipeFunction(function)


# ── finding a recipe ─────────────────────────────────────────────────────────────────────────────────────────────────


def find_recipe(ref: str) -> RecipeFunction[...]:
    """The recipe that a reference names.

    Args:
        ref: a Python file, ``file.py:function``, or the name of an entry point of the group ``hftl.recipes``.

    Raises:
        RecipeError: there is none, or it cannot be loaded.
    """
    path, _, function = ref.partition(".py:")
    if function or ref.endswith(".py"):
        return _from_file(Path(f"{path}.py" if function else ref), function)
    known = recipe_claims()
    if ref in known:
        if conflict := recipe_conflict(ref, known[ref]):
            raise RecipeError(conflict)
        return _from_object(ref, known[ref][0])
    if Path(f"{ref}.py").is_file():
        return _from_file(Path(f"{ref}.py"), "")
    ways = did_you_mean(ref, known) or "; give a Python file, or a name from `hftl recipes`"
    raise RecipeError(f"no recipe is called {ref!r}{ways}{plugins().suspects()}")


def recipe_claims() -> dict[str, list[str]]:
    """Every recipe registered by an entry point or a plugin: its name and each ``package.module:function`` it is."""
    claims = [(entry.name, entry.value) for entry in entry_points(group="hftl.recipes")]
    for _, theirs in plugins().collect("hftl_register_recipes", lambda name, value: (str(name), str(value))):
        claims += theirs
    registered: dict[str, list[str]] = {}
    for name, value in claims:
        if value not in registered.setdefault(name, []):
            registered[name].append(value)
    return registered


def recipe_conflict(name: str, values: Sequence[str]) -> str | None:
    """What is wrong with a name that more than one package registered; None if nothing is."""
    if len(values) < 2:
        return None
    return f"recipe {name!r} is claimed twice, as {values[0]} and {values[1]}; uninstall one of the two packages"


class _AsItStands(SourceFileLoader):
    """Reads a file itself, and neither reads nor writes compiled code beside it.

    Python takes that for the file's where the file has the same size and was written in the same second, so that a
    recipe that was just edited would run as it was.
    """

    def path_stats(self, path: Any) -> Any:
        raise OSError(f"nothing compiled is kept of {path}")


def _from_file(path: Path, function: str) -> RecipeFunction[...]:
    if not path.is_file():
        beside = did_you_mean(path.name, [p.name for p in path.parent.glob("*.py")])
        raise RecipeError(f"no recipe file {str(path)!r}{beside or '; check the path'}")
    name = f"{OF_A_FILE}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} is not a Python file")
    if isinstance(spec.loader, SourceFileLoader):
        spec.loader = _AsItStands(name, str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with modules_beside(path.parent):
            spec.loader.exec_module(module)
    except HftlError:
        raise
    except (Exception, SystemExit) as error:
        raise RecipeError(f"recipe {path} cannot be loaded: {named_error(error)}{_line_in(error, path)}") from error
    functions = {f.name: f for f in vars(module).values() if isinstance(f, RecipeFunction)}
    # One that it imports to build on is not meant, where it has its own.
    defined = {key: f for key, f in functions.items() if f.__module__ == name} or functions
    for each in defined.values():
        each.folder = path.parent
    if function:
        if function not in defined:
            raise RecipeError(f"{path} has no recipe {function!r}; it has: {', '.join(defined) or 'none'}")
        return defined[function]
    if len(defined) != 1:
        names = ", ".join(defined)
        what = f"{len(defined)} recipes ({names}): name one, {path}:NAME" if defined else "no function with @recipe"
        raise RecipeError(f"{path} has {what}")
    return next(iter(defined.values()))


@contextmanager
def modules_beside(folder: Path | None) -> Iterator[None]:
    """Let Python find the modules of a folder while this is entered, after all others, and forget them again.

    After all others, because a file beside a recipe that happens to be called ``datasets.py`` must not become what
    transformers imports under that name. Forgotten, because the next recipe may have another module of that name.
    """
    where = str(folder.resolve()) if folder else ""
    if not where or where in sys.path:
        yield
        return
    before = set(sys.modules)
    sys.path.append(where)
    # The import system remembers what was in a folder when it last looked.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(where)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and not name.startswith(OF_A_FILE) and Path(file).is_relative_to(where):
                del sys.modules[name]


def _line_in(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})"
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


def _from_object(name: str, value: str) -> RecipeFunction[...]:
    module, _, attribute = value.partition(":")
    try:
        named = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:
        raise RecipeError(f"recipe {name!r} ({value}) cannot be loaded: {named_error(error)}") from error
    if not isinstance(named, RecipeFunction):
        raise RecipeError(f"recipe {name!r} ({value}) is a {type(named).__name__}; decorate it with @recipe")
    return named


# ── changing a recipe by flags ───────────────────────────────────────────────────────────────────────────────────────


def changed(made: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with some fields replaced.

    Args:
        made: the recipe.
        changes: new values by dotted name, such as ``{"method.folds": "3"}``; text is read as the field's type.
            ``method`` itself may be given as a method's name, which then starts from that method's defaults.

    Raises:
        RecipeError: a field does not exist or a value does not fit.
    """
    values: dict[str, Any] = {name: getattr(made, name) for name in Recipe.model_fields}
    # Its class is called LoRA, and its name lora.
    method = str(changes.get("method", made.method.name)).lower()
    if method not in METHODS:
        raise RecipeError(
            f"no method is called {method!r}{did_you_mean(method, METHODS)}; the methods are: {', '.join(METHODS)}"
        )
    values["method"] = dict(made.method) if method == made.method.name else {"name": method}
    for name, value in changes.items():
        if name == "method":
            continue
        outer, _, inner = name.partition(".")
        where, key, model = (values["method"], inner, METHODS[method]) if outer == "method" else (values, name, Recipe)
        key, _, entry = key.partition(".")
        if key not in model.model_fields:
            if name in field_names():
                raise RecipeError(_of_other_methods(method, key))
            raise RecipeError(f"no field {name!r}{_close_field(name)}")
        if entry:
            # One entry of a field that is a mapping, such as method.lora.target_modules.
            where[key] = {**(where.get(key) or {}), entry: _parsed(value, object)}
        else:
            where[key] = _parsed(value, model.model_fields[key].annotation)
    try:
        values["method"] = METHODS[method].model_validate(values["method"])
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(first_problem(error)) from error


def field_names() -> list[str]:
    """Every dotted name that `changed` takes."""
    names = [name for name in Recipe.model_fields if name != "method"]
    inner = [f"method.{field}" for model in METHODS.values() for field in model.model_fields if field != "name"]
    return [*names, "method", *dict.fromkeys(inner)]


def is_boolean(annotation: Any) -> bool:
    """Whether a type is bool, or bool and None."""
    return annotation is bool or set(get_args(annotation)) == {bool, type(None)}


def read_as(annotation: Any, value: str, flag: str) -> Any:
    """Text from the command line as a value of a parameter's type.

    Raises:
        RecipeError: it does not fit.
    """
    try:
        return TypeAdapter(annotation).validate_python(_parsed(value, annotation))
    except ValidationError as error:
        raise RecipeError(f"{flag} {value!r}: {error.errors()[0]['msg']}") from error


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's problems, as one line."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("literal", "list", "function")))
    if problem["type"] == "extra_forbidden":
        # A method that a recipe makes is named by its class.
        method = next((name for name, model in METHODS.items() if model.__name__ == error.title), None)
        if method and f"method.{where}" in field_names():
            return _of_other_methods(method, where)
        return f"no field {where!r}{_close_field(where)}"
    given = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
    return f"{where or 'recipe'}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _of_other_methods(method: str, field: str) -> str:
    """What to say of a field that a method has not, and others have."""
    having = [name for name, model in METHODS.items() if field in model.model_fields]
    return f"the method {method!r} has no field {field!r}, which is one of {' and '.join(having)}: choose with --method"


def _close_field(name: str) -> str:
    known = field_names()
    close = close_matches(name, known) or close_matches(f"method.{name}", known)
    return suggest(close) or f"; the fields are: {', '.join(known)}"


def _parsed(value: Any, annotation: Any) -> Any:
    """Text from the command line as what a type is made of: JSON, and ``a,b`` where a list is due."""
    if not isinstance(value, str) or annotation in (str, Any):
        return value
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    if "list[" in str(annotation) and not isinstance(read, list) and read is not None and read != "balanced":
        return [part.strip() for part in value.split(",")]
    return read
