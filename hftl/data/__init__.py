"""Data: from a reference to rows and labels, with what was inferred said in words."""

from hftl.data.load import load_data
from hftl.data.rows import Data, Files, Labels, RowNames, Split, Task, Texts

__all__ = ["Data", "Files", "Labels", "RowNames", "Split", "Task", "Texts", "load_data"]
