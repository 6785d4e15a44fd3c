"""`FrozenFeatures`: a backbone's stored features as a transformer of scikit-learn.

Cross-validation, grid search, pipelines and every head of scikit-learn ask for the same rows again and again; each row
goes through the backbone once, whoever asks and whenever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from hftl.backbones.loading import load_backbone
from hftl.backbones.precision import Precision
from hftl.backbones.protocol import Backbone, Target
from hftl.data import Data, Files, RowNames, Split, Texts
from hftl.data.load import strings_of
from hftl.data.objects import input_columns_of
from hftl.errors import DataError, RecipeError
from hftl.frozen.recipe import stored_features
from hftl.frozen.stored_matrix import StoredMatrix
from hftl.frozen.view import View
from hftl.hub.client import staying_offline
from hftl.methods import Pooling
from hftl.parallel import start_processes
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.runs.console import quiet_libraries
from hftl.tasks import Task
from hftl.terminal import Terminal

# A model is built with some labels, of which no feature depends; hardly a checkpoint has a head of just so many.
_NO_LABELS = [str(number) for number in range(7)]
_WAYS = "a list, an array (n,), a Series, or one column of a DataFrame; of pairs of texts two columns"


class FrozenFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What a pretrained backbone gives for texts, pairs of texts, pictures or sounds: float32 (n, d).

    Nothing is learned by `fit`, which sees that the backbone reads the rows. Rows are named by their content in hftl's
    store, so none is computed twice, in whatever fold, process or program it stands. A pickle holds no model: it holds
    the parameters, by which the features are found, or computed, where it is opened.

    Rows are a list, an array (n,), a Series of pandas or polars, or a DataFrame of one column: texts, paths of files,
    encoded files (bytes) or pictures of Pillow. Pairs of texts are tuples, an array (n, 2) or two columns.

    Args:
        backbone: a registered name, a Hub id ``user/name[@revision]``, or a folder.
        pooling: what of the backbone is returned, as of `hftl.Head`.
        mixed_precision: of the pass: ``"no"``, ``"bf16"`` or ``"fp16"``.
        max_length: tokens kept of a text; None for what the model allows.
        depth: the backbone's first blocks only; None for all of them.
        offline: use only what is on this machine.
        allow_pickle: read weights that are there only as a pickle, as nothing but tensors.
        quiet: print nothing but errors.
    """

    def __init__(
        self,
        backbone: str,
        *,
        pooling: Pooling = "native",
        mixed_precision: Precision = "no",
        max_length: int | None = None,
        depth: int | None = None,
        offline: bool = False,
        allow_pickle: bool = False,
        quiet: bool = True,
    ) -> None:
        self.backbone = backbone
        self.pooling = pooling
        self.mixed_precision = mixed_precision
        self.max_length = max_length
        self.depth = depth
        self.offline = offline
        self.allow_pickle = allow_pickle
        self.quiet = quiet

    def fit(self, X: Any, y: Any = None) -> FrozenFeatures:
        """See that the backbone reads the rows, by the features of the first.

        Args:
            X: the rows.
            y: not used.

        Raises:
            UserError: the backbone cannot be used, or a row is nothing that it reads.
        """
        self._fit_transform(X, first_only=True)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> npt.NDArray[np.float32]:
        """The features of the rows, as `transform` gives them; see `fit`."""
        return self._fit_transform(X, first_only=False)

    def transform(self, X: Any) -> npt.NDArray[np.float32]:
        """The features of rows, float32 (n, d), computed where they are not stored yet.

        Raises:
            UserError: a row is nothing that the backbone reads.
            BadRowError: a picture cannot be decoded.
            StoreError: features cannot be stored.
        """
        check_is_fitted(self, "_n_features_out")
        return self._features(_values_of(X))

    def _fit_transform(self, X: Any, first_only: bool) -> npt.NDArray[np.float32]:
        values = _values_of(X)
        features = self._features(values, only=1 if first_only else len(values))
        self._n_features_out = features.shape[1]
        return features

    def _features(self, values: Sequence[Any], only: int | None = None) -> npt.NDArray[np.float32]:
        """The features of all rows, or of the first ones only; all are looked at."""
        if self.pooling not in get_args(Pooling) or self.mixed_precision not in ("no", "bf16", "fp16"):
            raise RecipeError(
                f"pooling={self.pooling!r}, mixed_precision={self.mixed_precision!r}: the poolings are "
                f"{', '.join(get_args(Pooling))}, the precisions no, bf16 and fp16"
            )
        say = Terminal(quiet=self.quiet or not start_processes().is_main_process)
        with quiet_libraries(), staying_offline(self.offline):
            spec = find(self.backbone)
            options = BackboneOptions(self.max_length, self.offline, self.allow_pickle)
            backbone = load_backbone(spec, options, self.depth, self.pooling, precision=self.mixed_precision)
            view = View.of(backbone, self.pooling, self.mixed_precision)
            target = Target(backbone, backbone.config(Task.SINGLE_LABEL, _NO_LABELS))
            data = _data_of(_inputs_of(values, backbone)[:only])
            stored = stored_features(
                spec, target, data, [view], say, on_bad_row="error", quiet=self.quiet, gather=False
            )
        return StoredMatrix.of(stored, data).in_memory().matrix

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        # Rows are no numbers whose precision could be kept: features are float32.
        tags.transformer_tags.preserves_dtype = []
        return tags


def _values_of(rows: Any) -> list[Any]:
    """The rows as a list; of two columns, a pair for each.

    Raises:
        DataError: that is nothing with a row after the other.
    """
    if isinstance(rows, (str, bytes, Mapping)) or not hasattr(rows, "__len__"):
        raise DataError(f"X is a {type(rows).__name__}: rows are {_WAYS}")
    if hasattr(rows, "columns"):
        series = [rows.iloc[:, at] if hasattr(rows, "iloc") else rows[name] for at, name in enumerate(rows.columns)]
        columns = [each.to_list() for each in series]
    elif isinstance(rows, np.ndarray) and rows.ndim == 2:
        columns = rows.T.tolist()
    elif isinstance(rows, np.ndarray) and rows.ndim != 1:
        raise DataError(f"X is an array of {rows.ndim} dimensions: rows are {_WAYS}")
    else:
        columns = [list(rows)]
    if not 1 <= len(columns) <= 2:
        raise DataError(f"X has {len(columns)} columns: rows are {_WAYS}")
    if not columns[0]:
        raise DataError("X has no rows")
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def _inputs_of(values: Sequence[Any], backbone: Backbone) -> Texts | Files:
    """The rows as the backbone reads them.

    Raises:
        DataError: a row is something else.
    """
    columns = input_columns_of(values, "X")
    names = RowNames([("X", len(values))])
    texts = isinstance(values[0], str) or len(columns) == 2
    if backbone.wants == "text":
        if not texts:
            raise DataError(f"X row 1: {backbone.name} reads texts, and this is a {type(values[0]).__name__}")
        return Texts(list(zip(*map(strings_of, columns.values()), strict=True)), names)
    if len(columns) == 2:
        raise DataError(f"X row 1: {backbone.name} reads one {backbone.modality} a row, and this is a pair of texts")
    return Files(next(iter(columns.values())), names)


def _data_of(inputs: Texts | Files) -> Data:
    """Rows without labels, all of one split."""
    labels = np.zeros(len(inputs), dtype=np.int64)
    train, test = Split("train", inputs, labels), Split("test", inputs[:0], labels[:0])
    return Data("X", Task.SINGLE_LABEL, _NO_LABELS, train, None, test, notes=[], identity={})
