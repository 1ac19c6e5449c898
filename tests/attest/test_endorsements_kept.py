"""Endorsements on their way and at rest: the HTTP client, the cache, bundles, and files of other tools."""

from __future__ import annotations

import base64
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.endorsements import Answer, Bundle, Cache, Endorsement, HttpTransport, Retrying, Want, bundle
from strongroom.attest.endorsements.endorsement import MAX_BODY
from strongroom.attest.endorsements.fetch import fetch
from strongroom.attest.endorsements.foreign import endorsements_in
from strongroom.errors import ChannelError, FormatError, UsageError
from tests.attest.vendor_services import VendorServices, answer, served

VECTORS = Path(__file__).parents[1] / "vectors"
NOW = 1_751_624_191
COLLATERAL = json.loads((VECTORS / "tdx" / "v4_up_to_date.collateral.json").read_text())
ROOT = "intel/crl/root"


@pytest.fixture(scope="module")
def platform() -> dict[str, Endorsement]:
    """The four endorsements of a real platform, by name."""
    return {each.name: each for each in endorsements_in(json.dumps(COLLATERAL).encode(), now=NOW)}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


class TestHttp:
    def test_over_tls_from_a_service_with_its_own_ca(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # not used
        crl = bytes.fromhex(COLLATERAL["root_ca_crl"])
        routes = {
            "/root.crl": (200, {}, crl),
            "/moved": (302, {"Location": "/root.crl"}, b""),
            "/large": (200, {}, bytes(MAX_BODY + 1)),
            "/cut": (200, {"Content-Length": "100"}, b"short"),
        }
        with served(tmp_path, routes) as (url, ca):
            transport = HttpTransport(cafile=ca)
            assert fetch(Want(ROOT, f"{url}/root.crl"), transport, now=NOW).body == crl
            assert fetch(Want(ROOT, f"{url}/nothing"), transport, now=NOW) is None
            for path, problem in (
                ("/moved", "answers with HTTP 302, wanted 200"),
                ("/large", f"an answer of more than {MAX_BODY} bytes"),
                ("/cut", r"(ends 95 bytes early|incompleteread)"),
            ):
                with pytest.raises(ChannelError, match=problem):
                    fetch(Want(ROOT, url + path), transport, now=NOW)
            monkeypatch.setattr("strongroom.attest.endorsements.fetch._DEADLINE", 0.2)
            with pytest.raises(ChannelError, match="localhost: no whole answer in"):
                transport.get(f"{url}/slow")
            with pytest.raises(ChannelError, match="its certificate does not hold"):
                HttpTransport().get(f"{url}/root.crl")

    def test_nobody_there(self):
        with pytest.raises(ChannelError, match=r"127.0.0.1:9: connection refused"):
            HttpTransport().get("https://127.0.0.1:9/")

    def test_a_proxy_is_used_where_one_is_given(self):
        with socket.create_server(("127.0.0.1", 0)) as proxy, ThreadPoolExecutor(1) as pool:

            def refuse() -> bytes:
                with proxy.accept()[0] as connection:
                    asked = connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                return asked

            asked = pool.submit(refuse)
            with pytest.raises(ChannelError, match="403"):
                HttpTransport(proxy=f"127.0.0.1:{proxy.getsockname()[1]}").get("https://kds.example/vcek")
            assert asked.result().startswith(b"CONNECT kds.example:443 HTTP/1.")

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "https://", "https://user@host/", "https://host:port/"])
    def test_other_urls(self, url):
        with pytest.raises(UsageError):
            HttpTransport().get(url)

    def test_a_ca_file_that_is_none(self, tmp_path):
        with pytest.raises(UsageError, match=r"ca\.pem"):
            HttpTransport(cafile=tmp_path / "ca.pem")


class TestRetrying:
    class Scripted:
        def __init__(self, *script: int | ChannelError) -> None:
            self.script = list(script)

        def get(self, url: str) -> Answer:
            step = self.script.pop(0)
            if isinstance(step, ChannelError):
                raise step
            return Answer(step, {"retry-after": "7"} if step == 429 else {}, b"")

    def test_what_may_pass_is_tried_again_at_growing_intervals(self):
        pauses: list[float] = []
        transport = Retrying(self.Scripted(ChannelError("broken"), 503, 429, 200), sleep=pauses.append)
        assert transport.get("https://kds.example/").status == 200
        assert 1 <= pauses[0] <= 1.5 and 2 <= pauses[1] <= 3 and 7 <= pauses[2] <= 10.5

    def test_but_not_for_ever(self):
        pauses: list[float] = []
        transport = Retrying(self.Scripted(503, 503, 503, 429, 200), sleep=pauses.append)
        with pytest.raises(ChannelError, match=r"kds.example answers with HTTP 429") as caught:
            fetch(Want(ROOT, "https://kds.example/"), transport, now=NOW)
        assert len(pauses) == 3 and "keep a cache" in (caught.value.hint or "")

    def test_what_will_not_is_not(self):
        pauses: list[float] = []
        with pytest.raises(ChannelError, match="no such host"):
            Retrying(self.Scripted(ChannelError("no such host", hint="...")), sleep=pauses.append).get("https://x/")
        assert Retrying(self.Scripted(404), sleep=pauses.append).get("https://kds.example/").status == 404
        assert pauses == []


class TestCache:
    def test_it_is_its_owners_alone_and_gives_back_what_was_put(self, cache, platform):
        for each in platform.values():
            cache.put(each)
        assert list(cache.entries()) == [platform[name] for name in sorted(platform)]
        assert cache.get(ROOT) == platform[ROOT]
        assert cache.directory.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in cache.directory.iterdir()} == {0o600}

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[]", b'{"name": "intel/crl/root"}', b"\xff\xfe", b"[" * 100_000, b'{"name": 1}'],
        ids=["empty", "cut", "list", "no_body", "not_utf_8", "deep", "name_number"],
    )
    def test_what_cannot_be_read_is_as_if_it_were_not_there(self, cache, platform, content):
        cache.put(platform[ROOT])
        (path,) = cache.directory.glob("*.json")
        path.write_bytes(content)
        assert cache.get(ROOT) is None
        cache.put(platform[ROOT])
        assert cache.get(ROOT) == platform[ROOT]

    def test_an_entry_under_anothers_name_is_not_taken_for_it(self, cache, platform):
        cache.put(platform[ROOT])
        cache.put(platform["intel/crl/platform"])
        one, other = cache.directory.glob("*.json")
        other.write_bytes(one.read_bytes())
        assert [each is None for each in map(cache.get, (ROOT, "intel/crl/platform"))].count(True) == 1
        assert len(list(cache.entries())) == 1
        assert cache.prune(NOW) == 1

    def test_prune_removes_what_no_longer_holds(self, cache, platform):
        for each in platform.values():
            cache.put(each)
        assert cache.prune(NOW) == 0
        assert cache.prune(NOW + 30 * 24 * 60 * 60) == 3
        assert [each.name for each in cache.entries()] == [ROOT]

    def test_a_fleet_fetches_once(self, cache, platform):
        """Whoever comes first is answered only when the seven others wait; and those find what it fetched."""
        all_wait, answered = threading.Barrier(8), threading.Event()

        def sleep(_: float) -> None:
            if not answered.is_set():
                all_wait.wait(timeout=60)
            answered.wait(timeout=60)

        def verifier(_: int) -> Endorsement:
            mine = Cache(cache.directory, sleep=sleep)
            with mine.fetching(ROOT):
                found = mine.get(ROOT)
                if found is None:
                    all_wait.wait(timeout=60)
                    fetched.append(found := platform[ROOT])
                    mine.put(found)
                    answered.set()
            return found

        fetched: list[Endorsement] = []
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(verifier, range(8))) == {platform[ROOT]}
        assert len(fetched) == 1

    def test_a_directory_that_cannot_be_written_to_is_named(self, tmp_path, platform):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(UsageError, match=r"cache of endorsements, .*file/cache") as caught:
            Cache(tmp_path / "file" / "cache").put(platform[ROOT])
        assert "another directory" in (caught.value.hint or "")


class TestBundle:
    def test_what_is_written_is_read(self, tmp_path, platform):
        bundle.write(tmp_path / "fleet.json", platform.values())
        assert list(bundle.read(tmp_path / "fleet.json")) == [platform[name] for name in sorted(platform)]
        assert endorsements_in((tmp_path / "fleet.json").read_bytes(), now=0) == tuple(Bundle(platform.values()))

    def test_of_two_the_later_is_kept(self, platform):
        later = Endorsement.read(ROOT, platform[ROOT].body, fetched=NOW + 1)
        assert Bundle([later, platform[ROOT]]).get(ROOT) == later

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (
                lambda d: d.update(format="strongroom/endorsements/v2"),
                "got format 'strongroom/endorsements/v2', wanted",
            ),
            (lambda d: d.update(more=1), "wanted an object of format and endorsements"),
            (lambda d: d["endorsements"].update({"intel/crl/other": {"body": "", "fetched": 0}}), "no such name"),
            (lambda d: d["endorsements"][ROOT].update(body="AA=A"), "not base64"),
            (lambda d: d["endorsements"][ROOT].update(body="AAAA"), f"{ROOT}: revocation list: not X.509 DER"),
            (lambda d: d["endorsements"][ROOT].update(fetched=True), "fetched: wanted seconds"),
            (lambda d: d["endorsements"][ROOT].update(chain=COLLATERAL["pck_crl_issuer_chain"]), "wanted no chain"),
            (lambda d: d["endorsements"]["intel/tdx/qe"].pop("chain"), "intel/tdx/qe: wanted a chain"),
            (lambda d: d["endorsements"]["intel/tdx/qe"].update(chain="x"), "intel/tdx/qe: certificates: 0 in the PEM"),
            (
                lambda d: d["endorsements"].update({"intel/crl/processor": d["endorsements"]["intel/crl/platform"]}),
                "intel/crl/processor: got the revocation list of .*Platform CA",
            ),
            (
                lambda d: d["endorsements"].update({"intel/sgx/qe": d["endorsements"]["intel/tdx/qe"]}),
                "intel/sgx/qe: got the identity of 'TD_QE'",
            ),
        ],
        ids=lambda value: "" if callable(value) else None,
    )
    def test_what_it_may_not_be(self, platform, change, problem):
        document = json.loads(Bundle(platform.values()).to_bytes())
        change(document)
        with pytest.raises(FormatError, match=problem):
            Bundle.from_bytes(json.dumps(document).encode())

    def test_a_name_twice(self, platform):
        twice = Bundle([platform[ROOT]]).to_bytes().replace(b'"fetched"', b'"body": "", "fetched"')
        with pytest.raises(FormatError, match="has a member twice"):
            Bundle.from_bytes(twice)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(UsageError, match=r"none.json: no such file"):
            bundle.read(tmp_path / "none.json")


class TestForeignFiles:
    def test_platform_collateral_of_an_offline_pccs(self, platform):
        """Made as Intel's tool makes it: documents parsed and written again, chains percent-encoded."""
        tcb = json.loads(answer("tcbInfo", COLLATERAL["tcb_info"], COLLATERAL["tcb_info_signature"]))
        identity = answer("enclaveIdentity", COLLATERAL["qe_identity"], COLLATERAL["qe_identity_signature"])
        document = {
            "platforms": [],
            "collaterals": {
                "version": 4,
                "pck_certs": [],
                "tcbinfos": [{"fmspc": "b0c06f000000", "sgx_tcbinfo": None, "tdx_tcbinfo": tcb}],
                "pckcacrl": {"processorCrl": COLLATERAL["pck_crl"], "platformCrl": COLLATERAL["pck_crl"]},
                "qeidentity": "",
                "tdqeidentity": identity.decode(),
                "qveidentity": "not ours",
                "certificates": {
                    "SGX-PCK-Certificate-Issuer-Chain": {"PLATFORM": quote(COLLATERAL["pck_crl_issuer_chain"])},
                    "TCB-Info-Issuer-Chain": quote(COLLATERAL["tcb_info_issuer_chain"]),
                    "SGX-Enclave-Identity-Issuer-Chain": quote(COLLATERAL["qe_identity_issuer_chain"]),
                },
                "rootcacrl": COLLATERAL["root_ca_crl"],
            },
        }
        found = endorsements_in(json.dumps(document, indent=2).encode(), now=NOW)
        assert {each.name: each for each in found} == platform

    def test_certificates_of_a_chip(self):
        leaf = (VECTORS / "sev-snp" / "milan_v2.leaf.der").read_bytes()
        thim = {
            "vcekCert": f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(leaf).decode()}-----END CERTIFICATE-----\n",
            "tcbm": "0",
        }
        for raw in (leaf, json.dumps(thim).encode()):
            (found,) = endorsements_in(raw, now=NOW)
            assert found.name.startswith("amd/Milan/vcek/d49554ec717f4e5b") and found.name.endswith("/3-0-8-115")
            assert found.body == leaf

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{}",
            b"[]",
            b'{"collaterals": {"tcbinfos": [1]}}',
            b'{"collaterals": {"tcbinfos": [{"tdx_tcbinfo": 1}]}}',
            b'{"tcb_info": "{}"}',
            b'{"tcb_info": 1}',
            b'{"collaterals": {"rootcacrl": "\\ud800"}}',
            bytes.fromhex(COLLATERAL["root_ca_crl"]),
        ],
    )
    def test_what_they_may_not_be(self, raw):
        with pytest.raises(FormatError):
            endorsements_in(raw, now=NOW)


NAMES = (
    "intel/tdx/tcb/B0C06F000000",
    "intel/tdx/qe",
    "intel/crl/platform",
    ROOT,
    "amd/Milan/vcek/" + "00" * 64 + "/1-2-3-4",
    "amd/Milan/vcek/chain",
    "nvidia/crl/l1-root",
)


class TestHostileBytes:
    @settings(max_examples=100, deadline=None)
    @given(data=st.data(), name=st.sampled_from(NAMES))
    def test_raise_nothing_but_a_format_error(self, data, name):
        base = {
            NAMES[0]: answer("tcbInfo", COLLATERAL["tcb_info"], COLLATERAL["tcb_info_signature"]),
            NAMES[1]: answer("enclaveIdentity", COLLATERAL["qe_identity"], COLLATERAL["qe_identity_signature"]),
            NAMES[2]: bytes.fromhex(COLLATERAL["pck_crl"]),
        }.get(name, bytes.fromhex(COLLATERAL["root_ca_crl"]))
        body = bytearray(base)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(body) - 1))
            body[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
        try:
            found = Endorsement.read(name, bytes(body), chain=COLLATERAL["tcb_info_issuer_chain"], fetched=NOW)
        except FormatError:
            return
        assert Endorsement.from_wire(name, found.to_wire()) == found

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 100_000,
            '{"tcbInfo":' + "[" * 100_000 + "]" * 100_000 + ',"signature":"' + "0" * 128 + '"}',
            '{"tcbInfo":{},"signature":"' + "0" * 128 + '","signature":"' + "0" * 128 + '"}',
            '{"tcbInfo":{"fmspc":"B0C06F000000","id":"TDX","nextUpdate":1},"signature":"' + "0" * 128 + '"}',
            '{"tcbInfo":{"fmspc":"B0C06F000000","id":"TDX","x":' + "9" * 5000 + '},"signature":"' + "0" * 128 + '"}',
            answer("tcbInfo", COLLATERAL["tcb_info"], "00" * 63).decode(),
            answer("tcbInfo", COLLATERAL["tcb_info"], "00" * 64).decode() + "x",
        ],
        ids=["deep", "deep_inside", "member_twice", "no_dates", "long_number", "short_signature", "trailing"],
    )
    def test_documents(self, text):
        chain = COLLATERAL["tcb_info_issuer_chain"]
        with pytest.raises(FormatError):
            Endorsement.read(NAMES[0], text.encode(), chain=chain, fetched=NOW)

    def test_services_that_answer_with_too_much(self):
        services = VendorServices()
        services.serve("https://kds.example/", bytes(MAX_BODY + 1))
        with pytest.raises(ChannelError, match="too much"):
            fetch(Want(ROOT, "https://kds.example/"), services, now=NOW)
