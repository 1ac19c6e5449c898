"""Hosts outside and services for outsiders, of whole enclaves: through the launcher, and through `strongroom run`."""

from __future__ import annotations

import datetime as dt
import json
import socket
import ssl
from contextlib import ExitStack, suppress

import pytest

from strongroom.cas.policy.network import EgressRule, Published
from strongroom.cas.policy.version import parse_policy
from strongroom.cli.main import main
from strongroom.cli.run.outside import egress_rules, listeners_of
from strongroom.cli.run.replicas import listener_of
from strongroom.cli.workspace import write_policy
from strongroom.crypto import SigningKey
from strongroom.enclave import sandbox
from strongroom.enclave.image import ImageCache
from strongroom.enclave.outside import roots
from strongroom.errors import EnclaveError, RevokedError, StrongroomError, UsageError
from tests.enclave.images import Layout, link, member, tar
from tests.enclave.test_image import shell  # noqa: F401
from tests.shield.network.outside import Server, authority, now, server_context


@pytest.fixture
def ended():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def there(ended):
    """Two servers of this machine's, and the authority that vouches for them."""
    by = authority()
    made = [Server(server_context(by, "localhost")) for _ in range(2)]
    for each in made:
        ended.callback(each.close)
    return made, by


REACHES = """
import json, os, socket, ssl, sys
def attempt(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__
def said(sock, word):
    sock.sendall(word)
    return sock.recv(100).decode()
def reach(port):
    return socket.create_connection(("localhost", port), 20)
def own(port):
    return said(ssl.create_default_context().wrap_socket(reach(port), server_hostname="localhost"), b"own")
seen = {"clear": [], "own": []}
for port in map(int, sys.argv[1:]):
    seen["clear"].append(attempt(lambda: said(reach(port), b"clear")))
    seen["own"].append(attempt(lambda: own(port)))
seen["other port"] = attempt(lambda: reach(9))
seen["elsewhere"] = attempt(lambda: socket.create_connection(("192.0.2.1", 443), 20))
seen["unnamed"] = attempt(lambda: socket.gethostbyname("example.org"))
seen["udp"] = attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)))
seen["interfaces"] = [name for _, name in socket.if_nameindex()]
print(json.dumps(seen))
"""


def test_a_program_reaches_what_its_policy_names_and_nothing_else(world, bubblewrap, there):
    servers, by = there
    pem = by.certificate.pem().decode()
    kinds = ("enclave", "program")
    rules = tuple(EgressRule("localhost", each.port, pem, tls) for each, tls in zip(servers, kinds, strict=True))
    job = world.job(REACHES, *(str(each.port) for each in servers), egress=rules)
    status, out = job.run(outside=["localhost"])
    seen = json.loads(out)
    assert (status, seen["interfaces"]) == (0, ["lo"])
    assert (seen["clear"], seen["own"]) == (["CLEAR", "ConnectionResetError"], ["OWN", "OWN"])
    assert seen["other port"] == "ConnectionRefusedError"
    assert (seen["elsewhere"], seen["udp"], seen["unnamed"]) == ("OSError", "OSError", "gaierror")
    told = next(detail["egress"] for event, detail in job.events if event == "outside-ended")
    assert [(each["port"], each["tls"], each["opened"]) for each in told] == [
        (servers[0].port, "enclave", 2),
        (servers[1].port, "program", 1),
    ]
    assert told[1]["refusals"] == {"hello": 1}
    assert b"".join(servers[1].got) == b"own"


@pytest.mark.slow
def test_a_host_that_gives_no_wire_is_found_out(world, bubblewrap, there):
    (server, _), by = there
    rule = EgressRule("localhost", server.port, by.certificate.pem().decode())
    with pytest.raises(EnclaveError):
        world.job("pass", egress=(rule,)).run()


SERVES = """
import socket, sys
with socket.create_server(("", 8000)) as listener:
    print("listens", flush=True)
    peer, (address, _) = listener.accept()
    got = peer.recv(100)
    peer.sendall(got.upper() + f" from {address}".encode())
    peer.shutdown(socket.SHUT_WR)
    peer.recv(1)
    listener.accept()[0].recv(100)
"""


def test_an_outsider_verifies_the_policy_by_name_with_any_tls_client_until_it_is_revoked(
    world, bubblewrap, ended, monkeypatch
):
    monkeypatch.setattr(sandbox, "separate_users", lambda bwrap: False)  # as a plain user launches it
    job = world.job(SERVES, publish=(Published("api", 8000),))
    listener, endpoint = listener_of(None, world.cas)
    outside = listeners_of(["api=127.0.0.1:0"], job.policy, "127.0.0.1", 0)
    at = outside["api"].getsockname()
    log = world.directory / "log"
    with log.open("wb") as stream:
        enclave = job.launch(listener=listener, endpoint=endpoint, published=outside, stdout=stream.fileno())
    ended.callback(lambda: stopped(enclave))
    while b"listens" not in log.read_bytes():
        assert enclave.running
    with world.owner() as client:
        root = client.root_certificate()
    context = ssl.create_default_context(cadata=root.der)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    namespace, _, name = job.policy.name.partition("/")
    for wrong in ("localhost.example.com", f"other.{namespace}.mesh"):
        with pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(socket.create_connection(at, 20), server_hostname=wrong)
    with context.wrap_socket(socket.create_connection(at, 20), server_hostname=f"{name}.{namespace}.mesh") as client:
        client.sendall(b"hello")
        got = b""
        while piece := client.recv(100):
            got += piece
        assert got == b"HELLO from 198.18.0.1"
        assert client.unwrap()
    lasting = context.wrap_socket(socket.create_connection(at, 20), server_hostname=f"{name}.{namespace}.mesh")
    ended.callback(lasting.close)
    with world.owner() as client:
        client.revoke(job.policy.name, everything=True)
    with suppress(OSError):
        assert lasting.recv(1) == b""
    with pytest.raises(RevokedError):
        enclave.wait()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(at, 20)
    (told,) = next(detail["published"] for event, detail in job.events if event == "outside-ended")
    assert (told["name"], told["opened"], told["received"]) == ("api", 2, 5)


def stopped(enclave):
    with suppress(StrongroomError):
        enclave.stop()


def test_roots_are_the_policy_s_or_measured_ones():
    by = authority()
    der = by.certificate.der
    assert roots(by.certificate.pem().decode(), "a.example") == [der]
    known = roots("system", "a.example")
    assert len(known) > 50
    with pytest.raises(EnclaveError, match="is none of the"):
        roots("sha256:" + "0" * 64, "a.example")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--egress", "files.example.com"], "--egress: got 'files.example.com', wanted HOST:PORT"),
        (["--egress", "a.example:443,ca=none.pem"], "none.pem: no such file"),
        (["--egress", "a.example:443,tls=nobody"], "--egress: got"),
        (["--egress", "*.example:443"], "egress.host"),
        (["--publish", "api=0"], "--publish: 0 is no port of a program"),
        (["--publish", "api=high"], "--publish: api: got 'high', wanted PORT or ADDRESS:PORT"),
        (["--publish", "8000"], "--publish: got '8000', wanted NAME=[ADDRESS:]PORT"),
        (["--publish", "api=443"], "--publish: api: got 443: a program in an enclave listens at ports from 1,024 on"),
    ],
)
def test_words_that_make_no_sense(words, why, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *words, "--", "python", "-c", ""]) != 0
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_words_for_hosts_are_rules(tmp_path):
    pem = authority().certificate.pem().decode()
    (tmp_path / "ca.pem").write_text(f"Example CA\n{pem}")
    rules = egress_rules([f"A.Example:443,ca={tmp_path / 'ca.pem'}", "[2001:db8::1]:8443,tls=program"])
    assert rules == (EgressRule("a.example", 443, pem), EgressRule("2001:db8::1", 8443, "system", "program"))


def test_a_certificate_that_is_no_root_is_refused_where_the_enclave_judges_by_it(tmp_path):
    leaf = authority().issue(SigningKey.generate().public, "a.example", now=now(), lifetime=dt.timedelta(hours=1))
    (tmp_path / "leaf.pem").write_bytes(leaf.pem())
    with pytest.raises(UsageError, match=r"leaf\.pem: is no root"):
        egress_rules([f"a.example:443,ca={tmp_path / 'leaf.pem'}"])
    assert egress_rules([f"a.example:443,ca={tmp_path / 'leaf.pem'},tls=program"])[0].tls == "program"


def test_a_service_s_port_that_is_taken_and_one_that_nobody_publishes():
    digest = "sha256:" + "0" * 64
    text = write_policy(
        name="a/b",
        role="program",
        owner=digest,
        measurement="0" * 96,
        vendor_root=digest,
        program=None,
        vaults=(),
        publish=(Published("api", 8000),),
    )
    policy = parse_policy(text)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--publish: api at 127.0.0.1:{port}: address already in use\nhint"):
            listeners_of([f"api={port}"], policy, "127.0.0.1", 0)
        with pytest.raises(UsageError, match=f"--publish: api at ::1:{port + 1}"):
            held = listeners_of([f"api=[::1]:{port}"], policy, "127.0.0.1", 1)  # a second replica's is the next port
            with held["api"]:
                listeners_of([f"api=[::1]:{port}"], policy, "127.0.0.1", 1)
    with pytest.raises(UsageError, match="policy a/b publishes no web"):
        listeners_of(["web=80"], policy, "127.0.0.1", 0)


@pytest.mark.slow
def test_an_image_s_program_finds_names_and_roots_wherever_the_image_s_links_lead(world, bubblewrap, shell):  # noqa: F811
    script = b"cat /etc/hosts; while read line; do case $line in *BEGIN*) echo root;; esac; done < $SSL_CERT_FILE\n"
    layout = Layout(world.directory / "image", {"Entrypoint": ["sh", "/main.sh"]})
    links = [member("main.sh", script), link("etc/ssl", "/kept/ssl"), member("kept/ssl/certs/old.pem", b"old")]
    layout.of(shell, tar(*links, link("kept/ssl/certs/ca-certificates.crt", "/main.sh")))
    image = ImageCache(world.directory / "images").unpacked(layout.path)
    rule = EgressRule("files.example.com", 443, authority().certificate.pem().decode(), "program")
    status, out = world.job_of((), {}, image=image, egress=(rule,)).run(image=image, outside=["files.example.com"])
    lines = out.splitlines()
    assert (status, lines[2:]) == (0, ["198.18.0.2 files.example.com", "root", "root"])
