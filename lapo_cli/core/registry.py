"""One open registry for each kind of thing that can be added to lapo in one file.

What comes with lapo registers itself when its module in the registry's package is imported; other packages offer theirs
as entry points of the registry's group; a file given by ``--plugin`` calls :meth:`Registry.register` itself.
"""

import difflib
import importlib
import importlib.metadata
import operator
import pkgutil
import re
from collections.abc import Callable
from typing import Generic, TypeVar

from lapo_cli.core.errors import PluginError, UnknownNameError, describe, shortened

T = TypeVar("T")

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""What can be both a word of a command line and the name of a folder."""

_ESCAPES = {":": ".-.", ".": "..", "/": "."}
_ESCAPED = re.compile("|".join(map(re.escape, _ESCAPES.values())))  # The longest first.


def plain_name(word: str) -> str:
    """``family:member`` as a plain name, from which :func:`member_of` tells the member; any other word unchanged.

    ``/`` becomes ``.``, and what that stands for already is doubled: ``gymnasium:ALE/Pong-v5`` is the member
    ``ALE/Pong-v5`` of the family ``gymnasium``, and its plain name ``gymnasium.ALE.Pong-v5``.
    """
    family, colon, member = word.partition(":")
    return f"{family}.{''.join(_ESCAPES.get(letter, letter) for letter in member)}" if colon else word


def member_of(name: str) -> str:
    """The member that a plain name stands for."""
    escapes = {escape: letter for letter, escape in _ESCAPES.items()}
    return _ESCAPED.sub(lambda match: escapes[match[0]], name.partition(".")[2])


class Registry(Generic[T]):
    """Named things of one kind. Built-ins and entry points are imported at the first use, not before.

    Args:
        what: the kind, in the singular, as error messages call it.
        group: the group of the entry points.
        package: the package whose modules register the built-ins, if there are any; its subpackages are not imported.
        name_of: the name of a thing.
        more: how to get at others, for the message on an unknown name.
    """

    def __init__(
        self,
        what: str,
        group: str,
        package: str | None = None,
        name_of: Callable[[T], str] = operator.attrgetter("name"),
        more: str = "what a plugin adds needs --plugin FILE",
    ) -> None:
        self.what, self.group = what, group
        self._package, self._name_of, self._more = package, name_of, more
        self._items: dict[str, T] = {}
        self._families: dict[str, Callable[[str], T]] = {}
        self._members: dict[str, T] = {}
        self._loaded = False

    def register(self, item: T) -> T:
        """Add a thing under its name, and return it.

        Raises:
            PluginError: another thing has that name, it cannot be a name, or an installed plugin cannot be loaded.
        """
        self._load()  # So that a plugin finds the names of the built-ins taken.
        name = self._name_of(item)
        if not PLAIN_NAME.fullmatch(name):
            raise PluginError(
                f"'{shortened(name)}' cannot be the name of a {self.what}: use letters, digits, '-', '_' and '.'."
            )
        if self._items.setdefault(name, item) is not item:
            raise PluginError(f"There are two registrations of the {self.what} '{name}': rename one of them.")
        return item

    def register_family(self, family: str, make: Callable[[str], T]) -> None:
        """Add things that are too many to be listed; their names are those of :func:`plain_name`.

        Args:
            family: what comes before the colon.
            make: makes the thing of a member.

        Raises:
            PluginError: another family has that name.
        """
        if self._families.setdefault(family, make) is not make:
            raise PluginError(f"There are two registrations of the {self.what} family '{family}': rename one of them.")

    def get(self, name: str) -> T:
        """The thing of that name.

        Raises:
            UnknownNameError: there is none; the message gives the nearest name.
            PluginError: an installed plugin cannot be loaded.
            LapoError: it is of a family, and cannot be made.
        """
        self._load()
        name = plain_name(name)
        if name in self._items:
            return self._items[name]
        if name in self:
            if name not in self._members:
                self._members[name] = self._families[name.partition(".")[0]](member_of(name))
            return self._members[name]
        near = difflib.get_close_matches(name.lower(), self._items, 1, 0.8)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(self._items)}; {self._more}."
        raise UnknownNameError(f"There is no {self.what} '{name}': {hint}")

    def __contains__(self, name: object) -> bool:
        self._load()
        if not isinstance(name, str):
            return False
        name = plain_name(name)
        family, dot, _ = name.partition(".")
        return name in self._items or bool(dot and family in self._families and PLAIN_NAME.fullmatch(name))

    def names(self) -> list[str]:
        """All names, those of lapo first."""
        self._load()
        return list(self._items)

    def values(self) -> list[T]:
        """All things, those of lapo first."""
        self._load()
        return list(self._items.values())

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # First, because what is imported here registers itself.
        try:
            for module in _modules(self._package) if self._package else []:
                importlib.import_module(module)
            for entry_point in importlib.metadata.entry_points(group=self.group):
                self.register(self._from_entry_point(entry_point))
        except BaseException:
            self._loaded = False  # The next look-up fails in the same way, instead of finding some of the items.
            raise

    def _from_entry_point(self, entry_point: importlib.metadata.EntryPoint) -> T:
        try:
            item: T = entry_point.load()
            self._name_of(item)
        except Exception as error:
            owner = entry_point.dist.name if entry_point.dist else "an installed package"
            raise PluginError(
                f"The {self.what} '{entry_point.name}' of {owner} cannot be loaded ({describe(error)}): repair or "
                "uninstall it."
            ) from error
        return item


def _modules(package: str) -> list[str]:
    """Dotted names of a package's own modules."""
    path = importlib.import_module(package).__path__
    return sorted(f"{package}.{module.name}" for module in pkgutil.iter_modules(path) if not module.ispkg)
