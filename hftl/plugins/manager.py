"""`Plugins`: finding plugins and loading them so that none can break another person's command.

Plugins are entry points of the group ``hftl``. One that cannot be imported, or whose hooks do not fit or fail, is
left out, warned about once, listed by ``hftl plugins``, and named when something it may have given is asked for.
``HFTL_PLUGINS=a,b`` loads only those (empty: none); ``HFTL_TRACE_PLUGINS=1`` prints each load and each hook call.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import pluggy

from hftl._version import __version__
from hftl.errors import PluginError
from hftl.plugins import hookspecs
from hftl.plugins.spec import Plugin
from hftl.wording import named_error, printable

Item = TypeVar("Item")

BUILT_IN = ("hftl.backbones",)
HEAVY = ("torch", "transformers", "datasets", "tensorflow", "jax")
"""Libraries that take seconds to import; a plugin that brings one in when it registers slows down every command."""


class Plugins:
    """The loaded plugins and those that failed.

    Attributes:
        loaded: one record for each plugin, built-in ones first, failed ones included.
    """

    def __init__(self, selected: list[str] | None = None) -> None:
        self.manager = pluggy.PluginManager("hftl")
        self.manager.add_hookspecs(hookspecs)
        self.tracing = os.environ.get("HFTL_TRACE_PLUGINS") == "1"
        self.loaded: list[Plugin] = []
        for name in BUILT_IN:
            self._load(Plugin(name, "hftl", __version__), lambda name=name: importlib.import_module(name))
        for entry in discover(selected):
            package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "unknown")
            self._load(Plugin(entry.name, package, version), entry.load)

    @property
    def failed(self) -> list[Plugin]:
        """The plugins that were left out."""
        return [plugin for plugin in self.loaded if plugin.error]

    def suspects(self) -> str:
        """The end of a message about what nobody has: the plugins that failed, because one of them may have had it."""
        failed = ", ".join(f"{plugin.name}: {plugin.error}" for plugin in self.failed)
        return f" (plugins that failed to load: {failed})" if failed else ""

    def each(
        self, hook: str, let_through: tuple[type[Exception], ...] = (), **arguments: Any
    ) -> Iterator[tuple[Plugin, Any]]:
        """Call a hook plugin by plugin, so that a failure is pinned on its author; one that raises is left out.

        Args:
            hook: the hook's name.
            let_through: exceptions that are meant for the user and are raised.
            arguments: all arguments of the hook's specification; each implementation gets those that it takes.

        Yields:
            The plugin and what it returned, in the order of names, built-in ones last.
        """
        for implementation in self._implementations(hook):
            owner = self._record(implementation.plugin_name)
            called, result = self._call(implementation, owner, let_through, arguments)
            if called:
                yield owner, result

    def collect(self, hook: str, item: Callable[..., Item]) -> Iterator[tuple[Plugin, list[Item]]]:
        """Call a registration hook plugin by plugin; what a plugin registers before it fails does not count.

        Args:
            hook: the hook's name; its only argument is ``register``.
            item: makes one item of what ``register`` is called with; raises what is wrong with it.
        """
        for implementation in self._implementations(hook):
            owner = self._record(implementation.plugin_name)
            mine: list[Item] = []

            def register(*args: Any, _mine: list[Item] = mine, **kwargs: Any) -> None:
                _mine.append(item(*args, **kwargs))

            called, _ = self._call(implementation, owner, (), {"register": register})
            if called:
                yield owner, mine

    def tell(self, hook: str, **arguments: Any) -> None:
        """Tell every plugin of an event; what they return is not looked at."""
        for _ in self.each(hook, **arguments):
            pass

    def warn(self, plugin: Plugin, what: str) -> None:
        """Say on standard error what went wrong in a plugin that stays loaded."""
        _say(f"plugin {plugin.name!r} ({_whose(plugin)}): {what}")

    def reject(self, plugin: Plugin, why: str) -> None:
        """Leave out a loaded plugin that proved broken, and say so on standard error."""
        loaded = self._record(plugin.name)
        self.loaded[self.loaded.index(loaded)] = replace(loaded, error=why)
        self.manager.unregister(name=plugin.name)
        _say(f"plugin {plugin.name!r} ({_whose(plugin)}) is left out: {why}")

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """A hook's implementations by plugin name, those marked ``trylast`` (the built-in ones) last."""
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        return sorted(implementations, key=lambda implementation: (implementation.trylast, implementation.plugin_name))

    def _call(
        self,
        implementation: pluggy.HookImpl,
        owner: Plugin,
        let_through: tuple[type[Exception], ...],
        arguments: Mapping[str, object],
    ) -> tuple[bool, Any]:
        """Whether the implementation returned, and what."""
        hook = implementation.function.__name__
        passing: tuple[type[BaseException], ...] = (*let_through, KeyboardInterrupt)
        if self.tracing:
            _say(f"{hook} of {_whose(owner)}")
        try:
            with self._watched(owner):
                return True, implementation.function(*(arguments[name] for name in implementation.argnames))
        except passing:
            raise
        # A stranger's function may raise anything, SystemExit included; only an interrupt is ours to pass on.
        except BaseException as error:
            why = str(error) if isinstance(error, PluginError) else named_error(error)
            self.reject(owner, f"{hook} failed: {why}")
            return False, None

    def _record(self, name: str) -> Plugin:
        return next(plugin for plugin in self.loaded if plugin.name == name and not plugin.error)

    def _load(self, plugin: Plugin, load: Any) -> None:
        if self.tracing:
            _say(f"loading {_whose(plugin)}")
        self.loaded.append(plugin)
        taken = self.manager.has_plugin(plugin.name)
        try:
            if taken:
                raise PluginError(f"another package, {self._record(plugin.name).package}, has a plugin of this name")
            started = time.monotonic()
            with self._watched(plugin):
                module = load()
            self._amend(plugin.name, seconds=time.monotonic() - started)
            self._register(module, plugin.name)
            self._amend(plugin.name, hooks=tuple(sorted(name for name, _ in hook_options(self.manager, module))))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            why = str(error) if isinstance(error, PluginError) else named_error(error)
            self.loaded[-1] = replace(self.loaded[-1], error=why)
            _say(f"plugin {plugin.name!r} ({_whose(plugin)}) is left out: {why}")
            # Checked hook by hook, so some of its hooks may already be in place.
            if not taken and self.manager.has_plugin(plugin.name):
                self.manager.unregister(name=plugin.name)

    def _register(self, module: object, name: str) -> None:
        marked = hook_options(self.manager, module)
        known = sorted(hook for hook in vars(hookspecs) if hook.startswith("hftl_"))
        unknown = sorted(hook for hook, _ in marked if hook not in known)
        if unknown:
            raise PluginError(f"no hook is called {', '.join(unknown)}; the hooks are: {', '.join(known)}")
        if not marked:
            raise PluginError("it implements no hook; mark its functions with @hftl.hookimpl")
        for hook, options in marked:
            if options["wrapper"] or options["hookwrapper"]:
                raise PluginError(f"{hook} is a wrapper; hftl calls plugins one by one, so nothing is there to wrap")
        try:
            self.manager.register(module, name)
        except pluggy.PluginValidationError as error:
            # pluggy's message takes four lines; the last one says what does not fit.
            raise PluginError(str(error).strip().splitlines()[-1].strip()) from error
        self.manager.check_pending()

    def _amend(self, name: str, **changes: Any) -> None:
        record = self._record(name)
        self.loaded[self.loaded.index(record)] = replace(record, **changes)

    @contextmanager
    def _watched(self, plugin: Plugin) -> Iterator[None]:
        """Note heavy libraries that a plugin brings in, and keep what it prints out of what a command prints."""
        before = {name for name in HEAVY if name in sys.modules}
        try:
            with stdout_as_stderr():
                yield
        finally:
            heavy = tuple(name for name in HEAVY if name in sys.modules and name not in before)
            if heavy and plugin.package != "hftl":
                self._amend(plugin.name, heavy=tuple(dict.fromkeys((*self._record(plugin.name).heavy, *heavy))))


@contextmanager
def stdout_as_stderr() -> Iterator[None]:
    """Send what is printed meanwhile to standard error: by Python, and by libraries in C that write to descriptor 1.

    What a command prints is for whoever reads it, such as a program that waits for JSON.
    """
    with ExitStack() as undo:
        undo.enter_context(redirect_stdout(sys.stderr))
        # A process may run without one of the two; then there is nothing to mix up.
        with suppress(OSError, ValueError):
            kept = os.dup(1)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, 1)
            # What was printed before must not come out on the other stream.
            (sys.__stdout__ or sys.stderr).flush()
            os.dup2(2, 1)
        yield


def hook_options(manager: pluggy.PluginManager, module: object) -> list[tuple[str, Any]]:
    """The hook that each marked function of a module implements, and the options it was marked with."""
    marked = []
    for attribute in dir(module):
        options: Any = manager.parse_hookimpl_opts(module, attribute)
        if options is not None:
            marked.append((options.get("specname") or attribute, options))
    return marked


def discover(selected: list[str] | None = None) -> list[EntryPoint]:
    """The entry points of the group ``hftl``, sorted by name; ``HFTL_PLUGINS`` restricts them."""
    if selected is None and "HFTL_PLUGINS" in os.environ:
        selected = [name.strip() for name in os.environ["HFTL_PLUGINS"].split(",") if name.strip()]
    installed = sorted(entry_points(group="hftl"), key=lambda entry: entry.name)
    if selected is None:
        return installed
    missing = sorted(set(selected) - {entry.name for entry in installed})
    if missing:
        names = ", ".join(entry.name for entry in installed) or "none"
        raise PluginError(f"HFTL_PLUGINS names {', '.join(missing)}, which is not installed; installed: {names}")
    return [entry for entry in installed if entry.name in selected]


def _whose(plugin: Plugin) -> str:
    return f"{plugin.package} {plugin.version}"


def _say(line: str) -> None:
    print(f"hftl: {printable(line)}", file=sys.stderr)


@lru_cache(maxsize=1)
def plugins() -> Plugins:
    """The plugins of this process, loaded when first asked for."""
    return Plugins()
