"""Endorsements: what vendors sign about their hardware, fetched, cached, and bundled for those without a network.

- `endorsement`: one of them, under a name of ours. Read this first.
- `intel`, `amd`, `nvidia`: what a vendor's evidence needs, where it is served, and the form that `verify` takes it in.
- `fetch`: over HTTP, by rules.
- `cache`, `bundle`: kept in a directory; in one file.
- `complete`: evidence with all it needs, in the order of sources that its first lines give.

This is the I/O shell around `verify`, which never imports it. Nothing here is trusted: all of it is checked there.
"""

from strongroom.attest.endorsements.bundle import Bundle
from strongroom.attest.endorsements.cache import Cache
from strongroom.attest.endorsements.complete import Services, Sources, endorsements_for, gather, wants
from strongroom.attest.endorsements.endorsement import Endorsement, Want
from strongroom.attest.endorsements.fetch import Answer, HttpTransport, Retrying, Transport

__all__ = [
    "Answer",
    "Bundle",
    "Cache",
    "Endorsement",
    "HttpTransport",
    "Retrying",
    "Services",
    "Sources",
    "Transport",
    "Want",
    "endorsements_for",
    "gather",
    "wants",
]
