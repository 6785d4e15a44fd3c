"""Talking to the Hub: who we are, trying again where that helps, and what went wrong in one line."""

from __future__ import annotations

import errno
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from unittest.mock import patch

from hftl._version import __version__
from hftl.errors import HftlError, HubError
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


def with_retries(call: Callable[[], T], *, races: frozenset[int] = frozenset(), most_races: int = MOST_RACES) -> T:
    """Call, and call again after what may pass: a busy or failing server, a lost connection, a lost race.

    huggingface_hub retries some of its requests, but neither making a repository, a commit or a question about one,
    nor a download that ends in an error of the server or a reset connection. What it retried is not retried here too:
    the two would multiply to thirty requests.

    Args:
        call: what to do; it must be safe to do twice.
        races: statuses that say that somebody else was faster, such as 412 for a commit on what is no longer the head.
        most_races: to lose before giving up.

    Raises:
        Exception: what the last attempt, or one that cannot be helped, raised.
    """
    failed = lost = 0
    with _asked() as asked:
        while True:
            try:
                return call()
            except Exception as error:
                answered = answer_in(error)
                if answered is not None and answered.response.status_code in races:
                    lost += 1
                    wait: float | None = random.uniform(0, 1) if lost < most_races else None
                else:
                    failed += 1
                    again = failed < ATTEMPTS and max(asked.values(), default=0) <= ATTEMPTS
                    wait = _wait_after(error, answered, failed) if again else None
                if wait is None:
                    raise
            time.sleep(wait)


Asked: TypeAlias = "Counter[tuple[str, str, str]]"
_ACTIVE: list[Asked] = []
_QUIET = threading.Lock()


@contextmanager
def _asked() -> Iterator[Asked]:
    """Count how often the Hub's client asks for each thing, and keep its own reports of each attempt quiet.

    Those reports would stand among a command's lines, with addresses that let whoever reads them download.
    """
    from huggingface_hub import get_session
    from huggingface_hub.utils import logging as hub_logging

    mine: Asked = Counter()
    # Several threads may push at once, with one session: the hook stays, and only the counters come and go.
    hooks = get_session().event_hooks
    if _count not in hooks.get("request", []):
        get_session().event_hooks = {**hooks, "request": [*hooks.get("request", []), _count]}
    with _QUIET:
        _ACTIVE.append(mine)
        if len(_ACTIVE) == 1:
            before = hub_logging.get_verbosity()
            hub_logging.set_verbosity(logging.ERROR)
        else:
            before = None
    try:
        yield mine
    finally:
        with _QUIET:
            # By identity: two counters with the same content are equal.
            _ACTIVE[:] = [each for each in _ACTIVE if each is not mine]
            if before is not None:
                hub_logging.set_verbosity(before)


def _count(request: Any) -> None:
    # Without the query, which holds another signature each time; pages of one list are different things.
    what = request.method, request.url.path, request.url.params.get("cursor", "")
    for asked in _ACTIVE:
        asked[what] += 1


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
    return any(isinstance(cause, lost) or _is_cut(cause) for cause in causes(error))


def broke_off(error: BaseException) -> bool:
    """Whether a connection was lost after it was made, so that the Hub can be reached and some of it arrived."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return connection_lost(error) and not any(isinstance(cause, httpx.ConnectTimeout) for cause in causes(error))


def _is_cut(error: BaseException) -> bool:
    """Whether a file came with another size than the Hub names; huggingface_hub has no class of its own for that."""
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def is_outage(error: BaseException) -> bool:
    """Whether the Hub, the network or the disk failed; what the user asked for may be all right."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    answered = answer_in(error)
    if answered is not None:
        return answered.response.status_code in TRANSIENT or answered.response.status_code >= 500
    if disk_is_full(error) or connection_lost(error):
        return True
    return not offline() and any(isinstance(cause, httpx.TransportError) for cause in causes(error))


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
        error_class: the error to raise where what the user asked for is wrong; it is `HubError` where the Hub fails.
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
        raise (HubError if is_outage(error) else error_class)(f"{kind} {ref!r} {why}") from error


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
    if broke_off(error):
        return f"did not arrive: the connection to the Hub broke off; run the same again, or {ways}"
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
    from huggingface_hub import constants

    datasets = sys.modules.get("datasets")
    with ExitStack() as stack:
        # Each library read the variable when it was imported, and child processes will read it.
        stack.enter_context(patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}))
        stack.enter_context(patch.object(constants, "HF_HUB_OFFLINE", True))
        if datasets:
            stack.enter_context(patch.object(datasets.config, "HF_HUB_OFFLINE", True))
        yield
    if not datasets and (imported := sys.modules.get("datasets")):
        # It read the variable while that was changed.
        imported.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE
