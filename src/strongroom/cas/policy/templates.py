"""Text of a policy with places for secrets: ``password=${secret.db}``.

Rules:

- ``${secret.NAME}`` is the secret's value, ``$${`` is the two characters ``${``; any other ``${`` is refused, so that
  no template means another thing later. A dollar sign elsewhere is itself.
- A value is put in as it is: what it contains is not looked at again.
- The template is public and measured; what it renders to is neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from strongroom.errors import PolicyError

_MARK = re.compile(r"\$?\$\{")
_SECRET = re.compile(r"secret\.([A-Za-z0-9][A-Za-z0-9._-]{0,62})\}")


@dataclass(frozen=True)
class Template:
    """Literal text and names of secrets in turns: one more text than names. Made by `parse_template` only."""

    texts: tuple[str, ...]
    places: tuple[str, ...]

    @property
    def names(self) -> frozenset[str]:
        """The secrets that it needs."""
        return frozenset(self.places)

    def render(self, values: Mapping[str, bytes | str]) -> str:
        """The text with the values in it.

        Bytes that are no UTF-8 come as surrogates, as in a program's variables: encoded with ``surrogateescape`` the
        result has every byte as it was.

        Args:
            values: of each secret that it needs, by name; others are not looked at.

        Raises:
            PolicyError: one is missing.
        """
        missing = sorted(self.names - values.keys())
        if missing:
            raise PolicyError(f"template: the secret {missing[0]} is missing")
        parts = [self.texts[0]]
        for name, text in zip(self.places, self.texts[1:], strict=True):
            value = values[name]
            parts += (value if isinstance(value, str) else value.decode("utf-8", "surrogateescape"), text)
        return "".join(parts)


@lru_cache(maxsize=64)  # one that is refused is no result, and not kept
def parse_template(text: str) -> Template:
    """The template that the text is.

    Raises:
        PolicyError: it has a ``${`` that begins no secret's place.
    """
    texts: list[str] = []
    places: list[str] = []
    literal: list[str] = []  # the pieces of the text that is open
    at = 0
    while (mark := _MARK.search(text, at)) is not None:
        literal.append(text[at : mark.start()])
        at = mark.end()
        if mark[0] == "$${":
            literal.append("${")
            continue
        found = _SECRET.match(text, at)
        if found is None:
            raise PolicyError(
                f"template: got {text[mark.start() : mark.start() + 40]!r}, wanted ${{secret.NAME}}",
                hint="a policy knows secrets only; write $${ for the characters ${",
            )
        places.append(found[1])
        texts.append("".join(literal))
        literal.clear()
        at = found.end()
    literal.append(text[at:])
    return Template((*texts, "".join(literal)), tuple(places))


def as_template(text: str) -> str:
    """The template that renders to `text`, whatever that contains."""
    return text.replace("${", "$${")
