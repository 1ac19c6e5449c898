"""The forms that values take in requests and answers, as JSON Schema 2020-12 (docs/spec/cas.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.attest.evidence import MAX_DEVICES, TEES
from strongroom.cas.log.head import HEAD_TEXT
from strongroom.cas.policy.table import FINGERPRINT
from strongroom.cas.policy.version import POLICY_NAME

Form = dict[str, Any]


def matching(pattern: str, description: str = "") -> Form:
    """A string that the pattern matches as a whole."""
    form = {"type": "string", "pattern": f"^(?:{pattern})$"}
    return form | ({"description": description} if description else {})


def listed(item: Mapping[str, Any], **limits: int) -> Form:
    return {"type": "array", "items": dict(item), **limits}


def table(properties: Mapping[str, Any], *, closed: bool = False) -> Form:
    """An object of properties; a name that ends in ``?`` is of one that may be absent.

    Args:
        closed: whether it has no others.
    """
    form: Form = {"type": "object", "properties": {name.rstrip("?"): dict(each) for name, each in properties.items()}}
    required = [name for name in properties if not name.endswith("?")]
    form |= {"required": required} if required else {}
    return form | ({"additionalProperties": False} if closed else {})


def or_null(form: Form) -> Form:
    return {"anyOf": [form, {"type": "null"}]}


TEXT: Form = {"type": "string"}
BOOLEAN: Form = {"type": "boolean"}
NUMBER: Form = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
OBJECT: Form = {"type": "object"}
BASE64 = matching("[A-Za-z0-9+/]*={0,2}", "RFC 4648, section 4, padded")
HEX = matching("(?:[0-9a-fA-F]{2})*")
HASH = matching("[0-9a-f]{64}", "SHA-256")
DIGEST = matching(FINGERPRINT.pattern, "SHA-256")
POLICY = matching(POLICY_NAME.pattern, "namespace/name")
JWT = matching(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", "RFC 7519, in the compact form")
HEAD = matching(HEAD_TEXT.pattern, "a log's size and root")
NOTE: Form = {"type": "string", "description": "a signed note of C2SP"}
ROOT = matching(r"[1-9][0-9]*:[0-9a-f]{64}(?:\+[1-9][0-9]*:[0-9a-f]{32})?(?:@[1-9][0-9]*)?", "a sealed file's root")
SIGNATURE = table({"key": DIGEST, "signature": BASE64}, closed=True)
EVIDENCE = table(
    {
        "tee": {"enum": list(TEES)},
        "quote": BASE64,
        "endorsements": BASE64,
        "devices?": listed(OBJECT, minItems=1, maxItems=MAX_DEVICES),
        "program?": matching("[0-9a-f]{96}", "a program's measurement"),
        "event_log?": BASE64,
    },
    closed=True,
)

ERROR = table({"error": TEXT, "code": matching("[a-z]+(?:-[a-z]+)*"), "hint?": TEXT})
