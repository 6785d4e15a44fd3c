"""Finding plugins and loading them so that none can break another person's command.

Plugins are entry points of the group ``hftl``. One that cannot be imported, or whose hooks do not fit, is left out, warned
about once, listed by ``hftl plugins``, and named when something it may have given is asked for.
``HFTL_PLUGINS=a,b`` loads only those (empty: none); ``HFTL_TRACE_PLUGINS=1`` prints each hook call.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from hftl import __version__, hookspecs
from hftl.errors import PluginError

BUILT_IN = ("hftl.backbones",)


@dataclass(frozen=True)
class Plugin:
    """One discovered plugin.

    Attributes:
        name: the entry point's name.
        package: the distribution that brought it.
        version: the distribution's version.
        hooks: the hooks it implements, sorted.
        error: why it was left out, in one line; None when it is loaded.
    """

    name: str
    package: str
    version: str
    hooks: tuple[str, ...] = ()
    error: str | None = None


class Plugins:
    """The loaded plugins and those that failed.

    Attributes:
        loaded: one record for each plugin, built-in ones first, failed ones included.
    """

    def __init__(self, selected: list[str] | None = None) -> None:
        self.manager = pluggy.PluginManager("hftl")
        self.manager.add_hookspecs(hookspecs)
        if os.environ.get("HFTL_TRACE_PLUGINS") == "1":
            self.manager.trace.root.setwriter(lambda line: print(line, end="", file=sys.stderr))
            self.manager.enable_tracing()
        self.loaded: list[Plugin] = []
        for name in BUILT_IN:
            self._add(name, "hftl", __version__, importlib.import_module(name))
        for entry in discover(selected):
            self._load(entry)

    @property
    def hook(self) -> pluggy.HookRelay:
        """The hook callers: ``plugins.hook.hftl_resolve_backbone(ref=...)``."""
        return self.manager.hook

    @property
    def failed(self) -> list[Plugin]:
        """The plugins that were left out."""
        return [plugin for plugin in self.loaded if plugin.error]

    def owner(self, module: object) -> Plugin:
        """The record of a registered plugin object."""
        name = self.manager.get_name(module)
        return next(plugin for plugin in self.loaded if plugin.name == name)

    def reject(self, name: str, why: str) -> None:
        """Leave out a loaded plugin that proved broken, and say so on standard error."""
        self.loaded = [
            Plugin(p.name, p.package, p.version, p.hooks, why) if p.name == name else p for p in self.loaded
        ]
        if self.manager.has_plugin(name):
            self.manager.unregister(name=name)
        print(f"hftl: plugin {name!r} left out: {why}", file=sys.stderr)

    def _load(self, entry: EntryPoint) -> None:
        package = entry.dist.name if entry.dist else "unknown"
        version = entry.dist.version if entry.dist else "unknown"
        try:
            self._add(entry.name, package, version, entry.load())
        # A stranger's module may raise anything, SystemExit included; only an interrupt is ours to pass on.
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.loaded.append(Plugin(entry.name, package, version))
            self.reject(entry.name, one_line(error))

    def _add(self, name: str, package: str, version: str, module: object) -> None:
        unknown = [hook for hook in hook_names(self.manager, module) if not hasattr(hookspecs, hook)]
        if unknown:
            known = ", ".join(sorted(n for n in vars(hookspecs) if n.startswith("hftl_")))
            raise PluginError(f"no hook is called {', '.join(unknown)}; the hooks are: {known}")
        self.manager.register(module, name)
        self.manager.check_pending()
        self.loaded.append(Plugin(name, package, version, tuple(sorted(hook_names(self.manager, module)))))


def hook_names(manager: pluggy.PluginManager, module: object) -> list[str]:
    """The names under which a module's marked functions would be registered."""
    found = []
    for attribute in dir(module):
        options: Any = manager.parse_hookimpl_opts(module, attribute)
        if options is not None:
            found.append(options.get("specname") or attribute)
    return found


def call(implementation: pluggy.HookImpl, **arguments: object) -> Any:
    """Call one plugin's implementation of a hook with those of the arguments that it takes."""
    return implementation.function(*(arguments[name] for name in implementation.argnames))


def discover(selected: list[str] | None = None) -> list[EntryPoint]:
    """The entry points of the group ``hftl``, sorted by name; ``HFTL_PLUGINS`` restricts them."""
    if selected is None and "HFTL_PLUGINS" in os.environ:
        selected = [name.strip() for name in os.environ["HFTL_PLUGINS"].split(",") if name.strip()]
    found = sorted(entry_points(group="hftl"), key=lambda entry: entry.name)
    if selected is None:
        return found
    missing = sorted(set(selected) - {entry.name for entry in found})
    if missing:
        names = ", ".join(entry.name for entry in found) or "none"
        raise PluginError(
            f"HFTL_PLUGINS names {', '.join(missing)}, which is not installed; installed: {names}"
        )
    return [entry for entry in found if entry.name in selected]


def one_line(error: BaseException) -> str:
    """An exception as one line: its type and its message without line breaks."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@lru_cache(maxsize=1)
def plugins() -> Plugins:
    """The plugins of this process, loaded when first asked for."""
    return Plugins()
