"""Files of evidence and endorsements, in the forms that other tools write: recognised by their content, never by name.

Pure: bytes in, `Evidence` out, and none of it is trusted.
"""

from __future__ import annotations

from strongroom.attest.files.evidence import MAX_FILE, Found, TpmFiles, read_evidence

__all__ = ["MAX_FILE", "Found", "TpmFiles", "read_evidence"]
