"""Put ORM objects back as they were before an attempt at a unit of work that failed.

An object that was made or changed outside a unit of work and added inside it has lost that news after a rollback:
SQLAlchemy expires it or takes it for stored, and the next attempt would write nothing. So its state is noted before it
joins the session, together with the state of the objects among the arguments of the work.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from types import CellType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.orm import InstanceState, object_session
from sqlalchemy.orm.attributes import init_state_collection
from sqlalchemy.orm.collections import collection_adapter

_EMPTY = CellType()


class Objects:
    """ORM objects with the state that each had when it was noted first."""

    _noted: WeakKeyDictionary[InstanceState[Any], "_State"] | None = None

    def note(self, instance: object) -> None:
        """Note the state of a mapped object, once."""
        state: InstanceState[Any] = instance._sa_instance_state  # type: ignore[attr-defined]
        if self._noted is None:
            self._noted = WeakKeyDictionary()
        if state not in self._noted:
            self._noted[state] = _State(state)

    def note_arguments(self, work: Callable[..., object]) -> None:
        """Note the detached and new objects that a function has among its arguments and in its closure."""
        # The function, its arguments, the lists among them, and what is in those.
        for value in _reachable(work, depth=3):
            # Asked of the class, because an attribute of a proxy can be anything.
            if hasattr(type(value), "_sa_class_manager") and object_session(value) is None:
                self.note(value)

    def restore(self) -> None:
        """Put every noted object back; its session has to be closed."""
        if self._noted:
            for state, noted in list(self._noted.items()):
                noted.restore(state)

    def forget(self) -> None:
        """Note nothing any more: what was done to the objects is stored."""
        self._noted = None


class _State:
    """Copy of the attributes of an object, and of what SQLAlchemy knows about them."""

    def __init__(self, state: InstanceState[Any]) -> None:
        self._known = _copied(vars(state))
        self._committed = dict(state.committed_state)
        self._expired = set(state.expired_attributes)
        # A composite is made anew from its columns.
        self._values = {name: value for name, value in state.dict.items() if name not in state.mapper.composites}
        self._members: dict[str, list[Any]] = {}
        self._contents: dict[str, Any] = {}
        for name, value in self._values.items():
            if isinstance(value, dict | list | set) or hasattr(value, "_sa_adapter"):
                attribute = state.manager.get(name)
                if attribute is not None and attribute.impl.collection:
                    self._members[name] = list(collection_adapter(value))
                elif attribute is not None:
                    self._contents[name] = _plain(value)

    def restore(self, state: InstanceState[Any]) -> None:
        """Put the object back."""
        for known, saved in ((vars(state), _copied(self._known)), (state.dict, self._values)):
            known.clear()
            known.update(saved)
        state.committed_state = dict(self._committed)
        state.expired_attributes = set(self._expired)
        for name, content in self._contents.items():
            _fill(self._values[name], deepcopy(content))
        for name, members in self._members.items():
            adapter = getattr(self._values[name], "_sa_adapter", None)
            if adapter is None or adapter.invalidated:
                del state.dict[name]
                adapter = init_state_collection(state, state.dict, name)
            adapter.clear_without_event()
            for member in members:
                adapter.append_without_event(member)


def _copied(known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.copy() if isinstance(value, dict | set) else value for name, value in known.items()}


def _plain(value: Any) -> Any:
    """Copy a value that can be changed in place, without the events of `sqlalchemy.ext.mutable`."""
    kind = next(kind for kind in (dict, list, set) if isinstance(value, kind))
    return deepcopy(kind(value))


def _fill(value: Any, content: Any) -> None:
    """Replace the content of a dict, list or set in place."""
    if isinstance(value, list):
        list.__setitem__(value, slice(None), content)
        return
    kind: Any = dict if isinstance(value, dict) else set
    kind.clear(value)
    kind.update(value, content)


def _reachable(value: object, depth: int) -> Iterator[object]:
    """Yield a value, and what functions and containers lead to from it."""
    yield value
    inner: Iterable[object] = ()
    if isinstance(value, FunctionType):
        inner = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
    elif isinstance(value, partial):
        inner = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        inner = value
    if depth:
        for each in inner:
            yield from _reachable(each, depth - 1)
