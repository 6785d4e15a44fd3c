"""Talking to the Hub: who we are, trying again where that helps, and what went wrong in one line."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar
from unittest.mock import patch

from hftl._version import __version__
from hftl.errors import HftlError
from hftl.wording import one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")

OFFLINE_WAYS = "give a local folder, or fetch it once with a network: hf download {ref}"
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds, doubled with each further attempt
MOST_RACES = 60
LONGEST_WAIT = 300.0  # seconds; a server that asks for more is not waited for


def hub_api() -> HfApi:
    """The Hub's client, under our name; it finds endpoint and token in huggingface_hub's usual places."""
    from huggingface_hub import HfApi

    return HfApi(library_name="hftl", library_version=__version__)


def with_retries(call: Callable[[], T], *, races: frozenset[int] = frozenset()) -> T:
    """Call, and call again after what may pass: a busy or failing server, a lost connection, a lost race.

    huggingface_hub retries some of its requests, but neither making a repository, a commit or a question about one,
    nor a download that ends in an error of the server or a reset connection.

    Args:
        call: what to do; it must be safe to do twice.
        races: statuses that say that somebody else was faster, such as 412 for a commit on what is no longer the head.

    Raises:
        Exception: what the last attempt, or one that cannot be helped, raised.
    """
    failed = lost = 0
    while True:
        try:
            return call()
        except Exception as error:
            answered = answer_in(error)
            if answered is not None and answered.response.status_code in races:
                lost += 1
                wait: float | None = random.uniform(0, 1) if lost < MOST_RACES else None
            else:
                failed += 1
                wait = _wait_after(error, answered, failed) if failed < ATTEMPTS else None
            if wait is None:
                raise
        time.sleep(wait)


def _wait_after(error: Exception, answered: HfHubHTTPError | None, failed: int) -> float | None:
    """Seconds to wait before the next attempt; None if another would fail as well."""
    backoff = FIRST_WAIT * 2 ** (failed - 1)
    if isinstance(error, HftlError):
        return None
    if answered is not None:
        if answered.response.status_code not in TRANSIENT:
            return None
        asked = _asked_wait(answered)
        return backoff if asked is None else asked if asked <= LONGEST_WAIT else None
    return backoff if connection_lost(error) else None


def connection_lost(error: BaseException) -> bool:
    """Whether a connection was lost that had been made; what was asked may have been done."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever release it uses

    lost = (httpx.TimeoutException, httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
    return any(isinstance(cause, lost) for cause in causes(error))


def _asked_wait(error: HfHubHTTPError) -> float | None:
    """Seconds that a server's answer asks to wait: ``Retry-After`` (seconds or a date), or a rate limit's reset."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    headers = error.response.headers
    asked = headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    if asked:
        try:
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
        except ValueError:
            return None
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, the last first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def answer_in(error: BaseException) -> HfHubHTTPError | None:
    """The Hub's answer that an error comes from; None if it comes from something else, such as a lost connection.

    That a file is not there is no reason: clients look for files that a repository may or may not have.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    answers = (c for c in causes(error) if isinstance(c, (HfHubHTTPError, httpx.TransportError)))
    nearest = next((answer for answer in answers if not isinstance(answer, EntryNotFoundError)), None)
    return nearest if isinstance(nearest, HfHubHTTPError) else None


def disk_is_full(error: BaseException) -> bool:
    """Whether an error comes from a full disk or a used-up quota."""
    return any(isinstance(c, OSError) and c.errno in (errno.ENOSPC, errno.EDQUOT) for c in causes(error))


@contextmanager
def hub_errors(
    ref: str, kind: str, error_class: type[HftlError], repo_type: str = "model", ways: str | None = None
) -> Iterator[None]:
    """Turn the Hub client's exceptions into one line of ``error_class``.

    Args:
        ref: the repository id, as the user wrote it.
        kind: what it is for a person, such as ``"backbone"``.
        error_class: the error to raise.
        repo_type: ``"model"`` or ``"dataset"``.
        ways: what a person can do without the Hub; by default how to read without it.
    """
    try:
        yield
    except HftlError:
        raise
    except Exception as error:
        option = "" if repo_type == "model" else f" --repo-type {repo_type}"
        why = explain(error, ref, repo_type, OFFLINE_WAYS.format(ref=ref) + option if ways is None else ways)
        if why is None:
            raise
        raise error_class(f"{kind} {ref!r} {why}") from error


def explain(error: BaseException, ref: str, repo_type: str, ways: str) -> str | None:
    """What went wrong on the way to the Hub and what to do, as the end of a sentence; None if it is something else."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    chain = list(causes(error))
    if disk_is_full(error):
        return f"does not fit on the disk of {constants.HF_HOME}: free some space, or set HF_HOME to a folder with more"
    answered = answer_in(error)
    if answered is not None:
        return _explain_answer(answered, ref, repo_type, ways)
    for cause in chain:
        if isinstance(cause, errors.HFValidationError):
            return f"is neither a folder here nor a valid Hub id: {one_line(cause)}"
        if isinstance(cause, (httpx.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
            why = "offline mode is on" if offline() else "the Hub cannot be reached"
            return f"is not on this machine and {why}: {ways}"
    return None


def _explain_answer(error: HfHubHTTPError, ref: str, repo_type: str, ways: str) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{'' if repo_type == 'model' else repo_type + 's/'}{ref}"
        return f"is gated: ask for access at {page}, then log in with `hf auth login`; or {ways}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "has no such revision on the Hub"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "is not on the Hub, or it is private and you are not logged in (`hf auth login`)"
    status = error.response.status_code
    if status == 401:
        return "is out of reach: the Hub does not accept your token; log in again with `hf auth login` or fix HF_TOKEN"
    if status == 403:
        said = error.response.headers.get("X-Error-Message", "")
        why = one_line(said or "forbidden")
        return f"is refused to your token ({why}): use one with the right to it (`hf auth login`)"
    if status == 429:
        return "is out of reach: the Hub allows no more requests for now; log in, or try again later"
    return f"failed: the Hub answered {one_line(error)}; try again later, or {ways}"


def offline() -> bool:
    """Whether the Hub must not be asked: ``HF_HUB_OFFLINE``, or `staying_offline`."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


@contextmanager
def staying_offline(asked: bool) -> Iterator[None]:
    """Keep all clients of the Hub from asking it while this is entered; the one owner of ``--offline``.

    Args:
        asked: whether to; where it is False, the environment decides as ever.
    """
    if not asked:
        yield
        return
    import datasets
    from huggingface_hub import constants

    with ExitStack() as stack:
        # Each library read the variable when it was imported, and child processes will read it.
        stack.enter_context(patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}))
        stack.enter_context(patch.object(constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(patch.object(datasets.config, "HF_HUB_OFFLINE", True))
        yield
