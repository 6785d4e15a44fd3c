"""What can go wrong on the way to the Hub, in one line each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hftl.errors import HftlError, UserError

OFFLINE_WAYS = "give a local folder, or fetch it once with a network: hf download {ref}"


@contextmanager
def hub_errors(ref: str, kind: str, error_class: type[UserError], repo_type: str = "model") -> Iterator[None]:
    """Turn the Hub client's exceptions into one line of ``error_class``.

    Args:
        ref: the repository id, as the user wrote it.
        kind: what it is for a person, such as ``"backbone"``.
        error_class: the error to raise.
        repo_type: ``"model"`` or ``"dataset"``.
    """
    import httpx2
    from huggingface_hub import errors

    option = "" if repo_type == "model" else f" --repo-type {repo_type}"
    ways = OFFLINE_WAYS.format(ref=ref) + option
    try:
        yield
    except HftlError:
        raise
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{'' if repo_type == 'model' else repo_type + 's/'}{ref}"
        raise error_class(
            f"{kind} {ref!r} is gated: ask for access at {page}, then log in with `hf auth login`; or {ways}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise error_class(f"{kind} {ref!r} has no such revision on the Hub") from error
    except errors.RepositoryNotFoundError as error:
        raise error_class(
            f"{kind} {ref!r} is not on the Hub, or it is private and you are not logged in (`hf auth login`)"
        ) from error
    except errors.HFValidationError as error:
        raise error_class(f"{ref!r} is neither a folder here nor a valid Hub id: {_short(error)}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "offline mode is on" if offline() else "the Hub cannot be reached"
        raise error_class(f"{kind} {ref!r} is not on this machine and {why}: {ways}") from error
    except (httpx2.HTTPError, errors.HfHubHTTPError) as error:
        raise error_class(
            f"{kind} {ref!r}: the Hub answered {_short(error)}; try again, or {ways}"
        ) from error


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` is set."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
