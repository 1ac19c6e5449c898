"""What a party has of a value that was revealed to others."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from strongroom.errors import UsageError


class Withheld:
    """What `reveal` returns to whoever is no recipient: a shape, and an error at any other use."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, to: tuple[str, ...]) -> None:
        self.shape, self.dtype, self._to = torch.Size(shape), dtype, to

    def __repr__(self) -> str:
        return f"Withheld({tuple(self.shape)}, revealed to {' and '.join(self._to)})"

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise UsageError(
            f"value: was revealed to {' and '.join(self._to)}, not to this party",
            hint="use it only there: `if isinstance(value, torch.Tensor)`; the program must not depend on it",
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        found = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Withheld)]
        if found:
            found[0]._refuse()
        raise UsageError("value: was not revealed to this party")

    __eq__ = __ne__ = __hash__ = _refuse
    __reduce_ex__ = _refuse


_DUNDERS = (
    "bool int float complex index len iter getitem setitem contains array format call neg pos abs invert "
    "lt le gt ge add radd sub rsub mul rmul truediv rtruediv matmul rmatmul pow rpow mod floordiv and or xor"
)
for _name in _DUNDERS.split():
    setattr(Withheld, f"__{_name}__", Withheld._refuse)
