"""Every error that a user can meet.

    HftlError                   something failed (exit status 1)
    ├── StoreError              the feature store cannot be read or written
    ├── ConvergenceError        a head has no usable solution, or training diverged
    ├── HubError                the Hub cannot be reached, goes on failing, or sent something damaged
    ├── Interrupted             training was asked to stop and saved its state (exit status 130)
    └── UserError               the input is wrong (exit status 2)
        ├── RecipeError         a recipe file, a field of a Recipe, or a flag
        ├── DataError           a data reference, a column, labels
        │   └── BadRowError     one row that cannot be decoded; names file and row
        ├── BackboneError       a model that cannot be found, loaded or used
        │   └── CutError      a model whose frozen part cannot be replayed exactly
        └── PluginError         a plugin that is broken, missing or in conflict

Each message is one line: what is wrong, where, and what to do about it.
"""


class HftlError(Exception):
    """Something failed that is not the user's fault; the command ends with exit status 1.

    Attributes:
        everywhere: whether all processes of a run meet it, so that the main one alone need say it.
    """

    exit_code = 1
    everywhere = False


class StoreError(HftlError):
    """The feature store cannot be read or written (disk full, no permission, no space)."""


class ConvergenceError(HftlError):
    """A head has no usable solution, or training diverged: something is not finite."""


class Interrupted(HftlError):  # noqa: N818 (nothing went wrong)
    """Training was asked to stop, by SIGTERM or SIGINT, and saved its state; the command ends with exit status 130."""

    exit_code = 130


class HubError(HftlError):
    """The Hub cannot be reached, goes on failing, or what came from it or went to it is not whole."""


class UserError(HftlError):
    """What the user gave cannot be used; the command ends with exit status 2."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe cannot be found, loaded or understood."""


class DataError(UserError):
    """A data reference, its columns or its labels cannot be used."""


class BadRowError(DataError):
    """One row cannot be decoded.

    Attributes:
        row: the row's name for a person, such as ``train/cat/3.jpg`` or ``train.csv row 17``.
    """

    def __init__(self, row: str, why: str) -> None:
        super().__init__(f"{row}: {why}")
        self.row = row
        self.why = why

    def __reduce__(self) -> tuple[type["BadRowError"], tuple[str, str]]:
        return type(self), (self.row, self.why)


class BackboneError(UserError):
    """A backbone cannot be found, loaded or used."""


class CutError(BackboneError):
    """The frozen part of a model cannot be replaced by cached features exactly."""


class PluginError(UserError):
    """A plugin is broken, missing, or claims a name that another one has."""
