"""The conformance kit for plugin authors: a backbone that passes is safe to train on. Three lines make a test.

    from hftl.testing import check_backbone

    def test_backbone() -> None:
        check_backbone("minilm-l6")

Each check says in words what it looked at and, where it fails, why that would hurt whoever uses the backbone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hftl.runs.console import quiet_libraries
from hftl.testing.checks import CHECKS
from hftl.testing.subject import CheckError, Plain, Subject
from hftl.wording import named_error

__all__ = ["CheckError", "check_backbone"]


def check_backbone(
    ref: str, *, rows: Sequence[Any] | None = None, plain: Plain | None = None, tolerance: float = 1e-4
) -> None:
    """Check everything that hftl takes for granted of a backbone, and print what was found.

    Args:
        ref: a registered name, or a reference that a plugin claims.
        rows: at least three raw rows of different sizes (encoded bytes, or tuples of strings); made up for images and
            texts.
        plain: gives logits (n, 3) of an exported folder and rows, without hftl; by default `transformers.pipeline`.
        tolerance: how far features and logits may be apart, as a share of the largest (or of 1, if that is more).

    Raises:
        CheckError: what failed and why, one line for each check.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        subject = Subject(ref, rows, plain, tolerance, Path(folder))
        print(f"hftl.testing: {ref}")
        failed = [line for check in CHECKS if (line := _outcome(check, subject)) is not None]
    if failed:
        raise CheckError(f"{ref} fails {len(failed)} of {len(CHECKS)} checks:\n" + "\n".join(failed))


def _outcome(check: Callable[[Subject], None], subject: Subject) -> str | None:
    """Run one check and print its line; the line if it failed."""
    promise = (check.__doc__ or "").strip().splitlines()[0].rstrip(".")
    try:
        check(subject)
    except NotImplementedError as error:
        print(f"  –  {promise}: not checked, {error}")
        return None
    except CheckError as error:
        line = f"  ✗  {promise}: {error}"
    except Exception as error:
        line = f"  ✗  {promise}: the check could not be carried through, {named_error(error)}"
    else:
        print(f"  ✓  {promise}")
        return None
    print(line)
    return line
