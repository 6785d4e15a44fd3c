"""`FrozenFeatures` in scikit-learn: each row goes through the backbone once, and scores are those of the matrix."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import runs
import tiny
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import hftl
from hftl.sklearn import FrozenFeatures
from hftl.store.space import Space


@pytest.fixture
def bert(tmp_path: Path) -> str:
    return str(tiny.save("bert", tmp_path / "bert"))


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(runs.write_texts(tmp_path / "texts.csv", 60)).drop_duplicates("text").reset_index(drop=True)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were computed and stored, commit by commit."""
    sizes: list[int] = []
    commit = Space.commit

    def counted(self: Space, digests: Any, *columns: Any, **options: Any) -> Any:
        sizes.append(len(digests))
        return commit(self, digests, *columns, **options)

    monkeypatch.setattr(Space, "commit", counted)
    return sizes


def test_cross_validation_extracts_once_and_scores_as_on_the_exported_matrix(
    bert: str, rows: pd.DataFrame, tmp_path: Path, stored: list[int]
):
    head = LogisticRegression(max_iter=1000)
    scores = cross_val_score(make_pipeline(FrozenFeatures(bert), head), rows["text"], rows["label"], cv=5)
    assert sum(stored) == len(rows), "five folds ask for each row five times"
    stored.clear()
    recipe = hftl.Recipe(backbone=bert, data=rows)
    features = hftl.features(recipe, quiet=True)
    (file,) = features.write(tmp_path / "matrix.parquet")
    assert stored == [], "a run finds what cross-validation stored"
    frame = pd.read_parquet(file).set_index("row")
    order = [f"DataFrame row {i + 1}" for i in range(len(rows))]
    matrix = np.stack(frame.loc[order, "features"].to_list())
    np.testing.assert_allclose(scores, cross_val_score(head, matrix, rows["label"], cv=5), atol=1e-12)
    grid = GridSearchCV(make_pipeline(FrozenFeatures(bert), head), {"logisticregression__C": [0.1, 1.0]}, cv=3)
    grid.fit(rows["text"].to_list(), rows["label"])
    assert stored == []


def test_every_form_of_the_same_texts_gives_the_same_features(bert: str, rows: pd.DataFrame):
    texts = rows["text"].to_list()
    expected = FrozenFeatures(bert).fit_transform(texts)
    assert (expected.shape, expected.dtype) == ((len(rows), 32), np.float32)
    fitted = FrozenFeatures(bert).fit(texts)
    forms = [
        tuple(texts),
        np.array(texts),
        np.array(texts, dtype=object),
        np.array(texts)[:, None],
        rows["text"],
        rows[["text"]],
        pl.Series(texts),
        pl.DataFrame({"text": texts}),
    ]
    for form in forms:
        np.testing.assert_array_equal(fitted.transform(form), expected)


def test_pairs_of_texts_are_tuples_an_array_or_two_columns(bert: str, tmp_path: Path):
    frame = pd.read_csv(runs.write_texts(tmp_path / "pairs.csv", 12, pairs=True))
    features = hftl.features(hftl.Recipe(backbone=bert, data=frame), quiet=True).to_pandas()
    expected = features.loc[[f"DataFrame row {i + 1}" for i in range(12)], 0:].to_numpy()
    pairs = frame[["sentence1", "sentence2"]]
    given = [pairs, pairs.to_numpy(), list(pairs.itertuples(index=False, name=None)), pl.from_pandas(pairs)]
    for each in given:
        np.testing.assert_array_equal(FrozenFeatures(bert).fit_transform(each), expected)


def test_pictures_are_paths_bytes_or_pictures_of_pillow(tmp_path: Path):
    vit = str(tiny.save("vit", tmp_path / "vit"))
    files = sorted(runs.write_images(tmp_path / "data", per_class=2).rglob("*.png"))
    frame = hftl.features(hftl.Recipe(backbone=vit, data=str(tmp_path / "data")), quiet=True).to_pandas()
    expected = frame.loc[[file.relative_to(tmp_path / "data").as_posix() for file in files], 0:].to_numpy()
    for given in (files, [str(file) for file in files], [file.read_bytes() for file in files]):
        np.testing.assert_array_equal(FrozenFeatures(vit).fit_transform(given), expected)
    images = [Image.open(file).copy() for file in files]
    np.testing.assert_allclose(FrozenFeatures(vit).fit_transform(images), expected, atol=1e-5)
    with pytest.raises(hftl.BadRowError, match="X row 2"):
        FrozenFeatures(vit).fit_transform([files[0].read_bytes(), b"no picture"])


def test_parameters_reach_the_features(bert: str, rows: pd.DataFrame):
    texts = rows["text"].to_list()
    recipe = hftl.Recipe(backbone=bert, data=rows, depth=2, max_length=6)
    features = hftl.features(recipe, pooling="mean", quiet=True).to_pandas()
    expected = features.loc[[f"DataFrame row {i + 1}" for i in range(len(rows))], 0:].to_numpy()
    made = FrozenFeatures(bert, pooling="mean", depth=2, max_length=6).fit_transform(texts)
    np.testing.assert_array_equal(made, expected)
    assert np.abs(made - FrozenFeatures(bert).fit_transform(texts)).max() > 1e-3


def test_it_is_cloned_and_pickled_without_a_model(bert: str, rows: pd.DataFrame):
    fitted = FrozenFeatures(bert, pooling="mean").fit(rows["text"])
    stored = pickle.dumps(fitted)
    assert len(stored) < 1000
    again = pickle.loads(stored)
    np.testing.assert_array_equal(again.transform(rows["text"]), fitted.transform(rows["text"]))
    assert clone(fitted).get_params() == fitted.get_params()
    assert "mean" in repr(fitted)
    assert hftl.sklearn.FrozenFeatures is FrozenFeatures


def test_its_output_has_names_and_can_be_a_frame(bert: str, rows: pd.DataFrame):
    made = FrozenFeatures(bert).set_output(transform="pandas").fit(rows["text"]).transform(rows["text"][3:9])
    assert list(made.columns) == list(FrozenFeatures(bert).fit(rows["text"]).get_feature_names_out())
    assert made.columns[0] == "frozenfeatures0"
    assert list(made.index) == list(range(3, 9))
    assert isinstance(FrozenFeatures(bert).set_output(transform="polars").fit_transform(rows["text"]), pl.DataFrame)
    of_columns = ColumnTransformer([("texts", FrozenFeatures(bert), "text"), ("rest", "passthrough", ["number"])])
    table = rows.assign(number=1.0)
    assert of_columns.fit_transform(table).shape == (len(rows), 33)
    assert of_columns.get_feature_names_out()[-1] == "rest__number"


def test_two_processes_of_joblib_read_one_store(bert: str, rows: pd.DataFrame):
    FrozenFeatures(bert).fit_transform(rows["text"])
    pipeline = make_pipeline(FrozenFeatures(bert), LogisticRegression(max_iter=1000))
    alone = cross_val_score(pipeline, rows["text"], rows["label"], cv=2)
    np.testing.assert_array_equal(cross_val_score(pipeline, rows["text"], rows["label"], cv=2, n_jobs=2), alone)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "X has no rows"),
        ("one text", "X is a str: rows are a list"),
        ({"a": 1}, "X is a dict: rows are a list"),
        (iter(["a"]), "rows are a list"),
        (["a", None], "X row 2, input: a NoneType is no input"),
        (["a", float("nan")], "X row 2, input: a float is no input"),
        (["a", ("b", "c")], "X row 2, input: a pair of texts, where the rows before are each a text"),
        (np.zeros((3, 4)), "X has 4 columns"),
        (np.zeros((3, 4, 5)), "X is an array of 3 dimensions"),
        (np.zeros(3), "X row 1, input: a float64 is no input"),
        ([b"bytes"], "reads texts, and this is a bytes"),
    ],
)
def test_rows_that_are_none_are_refused_with_their_place(bert: str, given: Any, said: str):
    with pytest.raises(hftl.UserError) as refused:
        FrozenFeatures(bert).fit(given)
    assert said in str(refused.value)


def test_parameters_that_are_none_are_refused(bert: str, tmp_path: Path):
    with pytest.raises(hftl.RecipeError, match="the poolings are native, mean, cls, cls"):
        FrozenFeatures(bert, pooling="max").fit(["a"])  # type: ignore[arg-type]
    with pytest.raises(hftl.BackboneError, match="no backbone"):
        FrozenFeatures("no such backbone").fit(["a"])
    vit = str(tiny.save("vit", tmp_path / "vit"))
    picture = Image.new("RGB", (32, 32))
    assert FrozenFeatures(vit, pooling="cls+mean").fit_transform([picture]).shape == (1, 64)
    with pytest.raises(hftl.DataError, match="reads one image a row, and this is a pair of texts"):
        FrozenFeatures(vit).fit([("a", "b")])


# ── scikit-learn's own checks ────────────────────────────────────────────────────────────────────────────────────────


WORDS = ("the", "cat", "sat", "on", "a", "red", "rug")


class OfNumbers(FrozenFeatures):
    """Reads each row of numbers as a text, so that scikit-learn's checks, which know numbers only, can be asked."""

    def fit(self, X: Any, y: Any = None) -> OfNumbers:
        super().fit(self._texts(X, reset=True))
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return super().fit_transform(self._texts(X, reset=True))

    def transform(self, X: Any) -> Any:
        check_is_fitted(self)
        return super().transform(self._texts(X, reset=False))

    def _texts(self, X: Any, reset: bool) -> list[str]:
        X = validate_data(self, X, reset=reset)
        return [
            " ".join(["the", "cat", "sat", "on", "a", "red", "rug"][int(abs(v) * 100) % 7] for v in row) for row in X
        ]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.one_d_array = tags.input_tags.string = False
        return tags


def test_it_passes_scikit_learn_s_checks(bert: str):
    with pytest.warns(SkipTestWarning, match="string=True"):
        # What scikit-learn can ask of a transformer of texts, which is little.
        check_estimator(FrozenFeatures(bert), on_skip=None)
    # What it asks of one of numbers.
    results = check_estimator(OfNumbers(bert), on_fail=None, on_skip=None)
    failed = {r["check_name"]: repr(r["exception"]) for r in results if r["status"] == "failed"}
    assert failed == {}
    assert sum(r["status"] == "passed" for r in results) > 30
