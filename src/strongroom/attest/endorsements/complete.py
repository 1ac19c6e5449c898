"""Complete evidence with the endorsements that verifying it takes: from a bundle, a cache, or the vendors' services.

For each endorsement, the first of these that there is:

1. the bundle's, if it holds at `now`;
2. the cache's, if it holds and is recent (within a day; certificates, within 30), or if nothing may be fetched;
3. a fresh one from the vendor's service, which the cache then keeps;
4. the cache's, if it holds: the service could not be reached, or says today that it has none;
5. one that no longer holds, or not yet, only for a caller who asks to be told of each (`on_expired`).

What evidence carries itself counts for little: an old TCB information still holds for weeks after Intel has published
a new one, and whoever shows evidence chooses which to send. So Intel's endorsements are always replaced. An AMD chip's
certificate cannot be chosen like that, and is kept if it is for the report's chip and TCB.

Where nothing may be fetched, two things of AMD's may be lacking: the issuers, whom `verify` has at hand, and the
revocation list, as where evidence is verified with what it carries. The claims then say that nobody has checked it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from strongroom.attest.endorsements import amd, intel, nvidia
from strongroom.attest.endorsements.amd import KDS
from strongroom.attest.endorsements.bundle import Bundle
from strongroom.attest.endorsements.cache import Cache
from strongroom.attest.endorsements.endorsement import Endorsement, Want
from strongroom.attest.endorsements.fetch import Transport, fetch
from strongroom.attest.endorsements.intel import PCS, ROOT_CRL, base_url
from strongroom.attest.endorsements.nvidia import SERVICE as NVIDIA
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.azure import parse_azure, parse_hcl_report
from strongroom.attest.parse.endorsements import parse_endorsements
from strongroom.crypto.chains import RevocationList, VendorCertificate
from strongroom.errors import ChannelError, ExpiredError, FormatError, UsageError, VerificationError


@dataclass(frozen=True)
class Services:
    """Whom to ask: the vendors, or mirrors of theirs. Each is a URL.

    Attributes:
        intel: Intel's provisioning certification service, or a caching service (PCCS).
        intel_root_crl: the revocation list of Intel's root.
        intel_early: ask for TCB information ahead of the end of a TCB recovery (``update=early``).
        amd: AMD's key distribution service.
        nvidia: where NVIDIA's revocation lists are; by HTTP, unlike the others.
    """

    intel: str = PCS
    intel_root_crl: str = ROOT_CRL
    intel_early: bool = False
    amd: str = KDS
    nvidia: str = NVIDIA

    def __post_init__(self) -> None:
        for name in ("intel", "intel_root_crl", "amd"):
            url = getattr(self, name)
            if not url.startswith("https://"):
                raise UsageError(f"service {name}: got {url[:200]!r}, wanted an https:// URL")

    @classmethod
    def caching(cls, pccs: str) -> Services:
        """A PCCS at that URL, with or without ``/sgx/certification/v4`` after the host, in place of Intel's service."""
        base = base_url(pccs)
        return cls(intel=base, intel_root_crl=f"{base}/sgx/certification/v4/rootcacrl")


@dataclass(frozen=True)
class Sources:
    """Where endorsements may come from, in the order at the top of this file. Without any of them there are none.

    Attributes:
        bundle, cache, transport: None leaves that one out; without a transport nothing is fetched.
        services: whom the transport asks.
        on_expired: is told, in a line for a person, of each endorsement that is used though it does not hold at `now`.
            If None, none is used.
    """

    bundle: Bundle | None = None
    cache: Cache | None = None
    transport: Transport | None = field(default=None, repr=False)
    services: Services = Services()
    on_expired: Callable[[str], object] | None = field(default=None, repr=False)

    def obtain(self, want: Want, *, now: int) -> Endorsement | None:
        """What `want` names; None if its vendor's service has no such thing.

        Raises:
            FormatError: no source has it, and nothing may be fetched.
            ExpiredError: what there is does not hold at `now`.
            ChannelError: it could not be fetched.
        """
        kept = [source.get(want.name) for source in (self.bundle, self.cache) if source is not None]
        found = [each for each in kept if each is not None]
        if self.bundle is not None and kept[0] is not None and kept[0].covers(now):
            return kept[0]
        failure: ChannelError | None = None
        is_known = True
        if self.transport is not None:
            try:
                fresh = self._refresh(want, self.transport, now)
            except ChannelError as error:
                failure = error
            else:
                is_known = fresh is not None
                found = [fresh, *found] if fresh else found
        for each in found:
            if each.covers(now):
                return each
        return self._expired(want, found, now, failure) if is_known else None

    def lacks(self, want: Want) -> bool:
        """Whether neither the bundle nor the cache has it, and nothing may be fetched."""
        kept = (source for source in (self.bundle, self.cache) if source is not None)
        return self.transport is None and all(source.get(want.name) is None for source in kept)

    def _refresh(self, want: Want, transport: Transport, now: int) -> Endorsement | None:
        if self.cache is None:
            return fetch(want, transport, now=now)
        cached = self.cache.get(want.name)
        if cached is not None and cached.is_recent(now):
            return cached
        with self.cache.fetching(want.name):
            cached = self.cache.get(want.name)  # somebody else may have fetched it meanwhile
            if cached is not None and (
                cached.is_recent(now) or (cached.covers(now) and self.cache.has_failed(want.name, now))
            ):
                return cached
            try:
                fresh = fetch(want, transport, now=now)
            except ChannelError:
                if cached is not None:
                    self.cache.note_failure(want.name, now)
                raise
            # What does not hold at `now`, be it that `now` lies in the past, would only be in the way.
            if fresh is not None and fresh.covers(now):
                self.cache.put(fresh)
            return fresh

    def _expired(self, want: Want, found: Sequence[Endorsement], now: int, failure: ChannelError | None) -> Endorsement:
        if not found:
            if failure is not None:
                raise failure
            raise FormatError(
                f"endorsement {want.name}: neither in the bundle nor in the cache, and nothing may be fetched",
                hint=f"fetch it with --fetch, or into a bundle where there is a network: {want.url}",
            )
        best = max(found, key=lambda each: each.valid[1])
        start, end = map(_moment, best.valid)
        problem = f"endorsement {want.name}: holds from {start} until {end}, not at {_moment(now)}"
        if self.on_expired is None:
            if failure is not None:
                hint = f"a newer one could not be fetched: {failure.message}"
            elif now < best.valid[0]:
                hint = "it was signed after that moment: check the clock, or give the endorsements of that time"
            else:
                hint = "check the clock, or fetch a newer one"
            raise ExpiredError(problem, hint=hint)
        self.on_expired(problem)
        return best


def wants(evidence: Evidence, *, services: Services = Services(), product: str | None = None) -> tuple[Want, ...]:
    """What `evidence` has to be completed with. For an SNP report that does not tell its product, of each it may be.

    `nitro`, `tpm` and `simulated` need nothing: they carry what there is.

    Raises:
        FormatError: the evidence does not parse.
        VerificationError: a certificate cannot be asked for, since the host hides its chip.
    """
    of_devices = [want for device in evidence.devices for want in wants(device, services=services)]
    return tuple(dict.fromkeys([*_own_wants(evidence, services, product), *of_devices]))


def _own_wants(evidence: Evidence, services: Services, product: str | None) -> tuple[Want, ...]:
    hardware = _hardware(evidence)
    if hardware.tee in ("sgx", "tdx"):
        return _intel_wants(intel.Platform.of_quote(hardware.quote), services)
    if hardware.tee == "snp":
        processor, leaf = _processor(hardware, product)
        found: list[Want] = []
        for each in processor.products:
            if leaf is None:
                found.append(amd.certificate_want(each, processor.chip, processor.tcb, service=services.amd))
            found += amd.issuer_wants(each, processor.key, service=services.amd)
        return tuple(found)
    if hardware.tee == "nvidia":
        return nvidia.wants(hardware.endorsements, service=services.nvidia)
    return ()


def endorsements_for(
    evidence: Evidence,
    *,
    now: int,
    bundle: Bundle | None = None,
    cache: Cache | None = None,
    transport: Transport | None = None,
    services: Services = Services(),
    product: str | None = None,
    on_expired: Callable[[str], object] | None = None,
) -> Evidence:
    """`evidence`, and that of its devices, completed by the rules at the top of this file.

    Args:
        now: seconds since 1970, by the verifier's clock.
        bundle, cache, transport, services, on_expired: as `Sources`.
        product: AMD's product (`amd.PRODUCTS`), for reports of version 2, which do not tell it; else it is tried.

    Raises:
        FormatError: the evidence does not parse, or an endorsement is in none of the sources.
        VerificationError: the vendor's service has none for what the evidence says of its platform.
        ExpiredError: one does not hold at `now`.
        ChannelError: one could not be fetched.
    """
    sources = Sources(bundle, cache, transport, services, on_expired)

    def obtain(want: Want) -> Endorsement | None:
        return sources.obtain(want, now=now)

    devices = tuple(replace(each, endorsements=_endorsements(each, obtain, sources)) for each in evidence.devices)
    return replace(evidence, endorsements=_endorsements(evidence, obtain, sources, product), devices=devices)


def gather(evidence: Evidence, sources: Sources, *, now: int, product: str | None = None) -> tuple[Endorsement, ...]:
    """The endorsements that `endorsements_for` completes `evidence` with: what a bundle for its platform holds.

    Raises:
        StrongroomError: as `endorsements_for`.
    """
    gathered: list[Endorsement] = []

    def obtain(want: Want) -> Endorsement | None:
        found = sources.obtain(want, now=now)
        gathered.extend([found] if found else [])
        return found

    for each in evidence.devices:
        _endorsements(each, obtain, sources)
    _endorsements(evidence, obtain, sources, product)
    return tuple(gathered)


_Obtain = Callable[[Want], Endorsement | None]


def _endorsements(evidence: Evidence, obtain: _Obtain, sources: Sources, product: str | None = None) -> bytes:
    hardware, services = _hardware(evidence), sources.services
    if hardware.tee in ("sgx", "tdx"):
        platform = intel.Platform.of_quote(hardware.quote)
        return intel.compose([_must(obtain, want) for want in _intel_wants(platform, services)])
    if hardware.tee == "snp":
        processor, carried = _processor(hardware, product)
        named, leaf = (processor.products[0], carried) if carried else _leaf(processor, obtain, services)
        chain, crl = (
            None if sources.lacks(want) else _must(obtain, want)
            for want in amd.issuer_wants(named, processor.key, service=services.amd)
        )
        carried_lists = parse_endorsements(hardware.endorsements).revocation_lists
        return amd.compose(leaf, chain, [RevocationList(crl.body)] if crl else carried_lists)
    if hardware.tee == "nvidia":
        lists = nvidia.wants(hardware.endorsements, service=services.nvidia)
        return nvidia.compose(hardware.endorsements, [_must(obtain, want) for want in lists])
    return evidence.endorsements


def _intel_wants(platform: intel.Platform, services: Services) -> tuple[Want, ...]:
    return intel.wants(platform, service=services.intel, root_crl=services.intel_root_crl, early=services.intel_early)


def _hardware(evidence: Evidence) -> Evidence:
    """The evidence of the hardware below a cloud's virtual TPM; other evidence as it is."""
    if evidence.tee == "azure-tdx":
        return Evidence("tdx", parse_azure(evidence.tee, evidence.quote).td_quote, b"")
    if evidence.tee == "azure-snp":
        report = parse_hcl_report(parse_azure(evidence.tee, evidence.quote).hcl_report).report
        return Evidence("snp", report, evidence.endorsements)
    return evidence


def _must(obtain: _Obtain, want: Want) -> Endorsement:
    found = obtain(want)
    if found is None:
        raise VerificationError(f"endorsement {want.name}: its vendor's service has none", hint=f"asked for {want.url}")
    return found


def _processor(evidence: Evidence, product: str | None) -> tuple[amd.Processor, VendorCertificate | None]:
    """The processor, and the certificate of its key if the evidence carries the right one."""
    processor = amd.Processor.of_report(evidence.quote, product=product)
    carried = parse_endorsements(evidence.endorsements).certificates
    leaf = next((each for each in carried if amd.certifies(each, processor)), None)
    named = amd.product_of(leaf) if leaf else None
    return (replace(processor, products=(named,)) if named and product is None else processor), leaf


def _leaf(processor: amd.Processor, obtain: _Obtain, services: Services) -> tuple[str, VendorCertificate]:
    """The product, and the certificate of the key."""
    if processor.key == "vlek":
        raise FormatError(
            "SNP report: signed with a provider's key (VLEK), whose certificate did not come with it",
            hint="AMD gives it to the provider alone: let the host hand it to its guests (extended report)",
        )
    for product in processor.products:
        want = amd.certificate_want(product, processor.chip, processor.tcb, service=services.amd)
        try:
            found = obtain(want)
        except FormatError:
            # Without a network: the bundle may have it as the next product's.
            if product == processor.products[-1]:
                raise
            continue
        if found is not None:
            return product, VendorCertificate(found.body)
    raise VerificationError(
        f"SNP report: AMD has no certificate of this chip at this TCB for {' or '.join(processor.products)}",
        hint="the host may claim a TCB that it does not have, or hide which product it is: --product",
    )


def _moment(seconds: int) -> str:
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%SZ}"
