"""Data: from a reference to rows and labels, with what was inferred said in words."""

from hftl.data.dataset import Data, Files, Labels, RowNames, Split, Texts
from hftl.data.evaluation import EvaluationData, load_evaluation_data
from hftl.data.load import load_data

__all__ = [
    "Data",
    "EvaluationData",
    "Files",
    "Labels",
    "RowNames",
    "Split",
    "Texts",
    "load_data",
    "load_evaluation_data",
]
