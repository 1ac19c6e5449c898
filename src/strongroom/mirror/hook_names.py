"""Classes, functions and members of enumerations, known by their names among what the program has loaded."""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

Name = tuple[str, str]  # of a module, and the qualified one in it

_MISSING: Final = object()


def name_of(value: Any) -> Name | None:
    """By which `named` finds a class, a function or a module again; None if it does not."""
    if isinstance(value, ModuleType):
        name = (value.__name__, "")
    else:
        name = (getattr(value, "__module__", None) or "", getattr(value, "__qualname__", ""))
    return name if named(name) is value else None


def described(kind: type) -> Name:
    """What a class calls itself."""
    return kind.__module__, kind.__qualname__


def named(name: Any) -> Any:
    """What has that name; None if nothing has. Nothing is imported for it."""
    module, qualname = name
    found: Any = sys.modules.get(module)
    for part in qualname.split(".") if qualname else ():
        found = getattr(found, part, None)
    return found


def is_reference(value: Any) -> bool:
    """Whether a value stands for code."""
    return isinstance(value, (type, FunctionType, BuiltinFunctionType, ModuleType))


def attributes(value: Any) -> dict[str, Any]:
    """Those of an object, in its slots too."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot in ("__dict__", "__weakref__"):
                continue
            private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{kind.__name__.lstrip('_')}{slot}" if private else slot
            held = getattr(value, name, _MISSING)
            if held is not _MISSING:
                found[name] = held
    return found


def set_attribute(value: Any, name: str, new: Any) -> None:
    """Set it past whatever the class does about it, as frozen classes and modules do."""
    if isinstance(value, type):
        setattr(value, name, new)
    elif isinstance(getattr(type(value), name, None), _SLOT):
        object.__setattr__(value, name, new)
    else:
        value.__dict__[name] = new


class _Slotted:
    __slots__ = ("one",)


_SLOT: Final = type(vars(_Slotted)["one"])
