"""Whatever document arrives, `parse_policy` gives a policy or a PolicyError, and what is written is read back."""

from __future__ import annotations

import copy
import datetime as dt
import json
import tomllib
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strongroom.cas.policy.lines import Lines, syntax_line
from strongroom.cas.policy.places import TAKEN
from strongroom.cas.policy.succession import check_succession
from strongroom.cas.policy.table import MAX_DOCUMENT, to_toml
from strongroom.cas.policy.templates import as_template
from strongroom.cas.policy.version import (
    Program,
    VaultRule,
    parse_policy,
    policy_problems,
    sign_policy,
    verify_policy,
)
from strongroom.cli.workspace import policy_name, write_policy
from strongroom.crypto import SigningKey
from strongroom.errors import PolicyError, StrongroomError, VerificationError
from tests.cas.world import PROGRAM, document
from tests.fuzz.parsers import check_policy, every_key

KEY = SigningKey.generate()
ROOT = "sha256:" + "0f" * 32
VALID = document(KEY, vendor_root=ROOT)
fuzz = settings(max_examples=300, deadline=None)


def parses_or_raises(text: str) -> None:
    problems = policy_problems(text)
    lines = Lines(text)
    for problem in problems:
        assert 1 <= lines.of(problem.where) <= text.count("\n") + 1
        assert problem.error.message.isprintable()
        assert len(problem.error.message) < 1000
    try:
        assert parse_policy(text).text == text
        assert not problems
    except PolicyError as error:
        assert error.message.isprintable()
        assert len(error.message) < 1000
        assert problems


@fuzz
@given(st.text())
@example("\ud800")
@example("\0")
@example("a = " + "1" * 5000)
@example("a = 0x" + "f" * 9000)
@example("a = " + "[" * 10_000)
@example("a = " + "{a = " * 10_000)
@example("a." * 100_000 + "b = 1")
@example("[" + "a." * 100_000 + "b]")
@example("'a'." * 60_000 + "b = 1")
@example("x" * (MAX_DOCUMENT + 1))
def test_garbage_is_refused(text):
    parses_or_raises(text)


@example("generate = 16", "generate = 0x" + "f" * 9000)
@example("version = 1", "version = 0x" + "f" * 9000)
@example("version = 1", "version = true")
@example("version = 1", "version = 1.0")
@example("[program]", "[[program]]")
@example("[[vaults]]", "[vaults]")
@example("[reference]", "[reference]\nallow_simulated = true\n#")
@example('"out"', "7")
@fuzz
@given(st.sampled_from(VALID.split()), st.text(max_size=20))
def test_a_document_with_a_word_replaced(old, new):
    parses_or_raises(VALID.replace(old, new))
    parses_or_raises(VALID.replace(old, new, 1))


@fuzz
@given(st.integers(0, len(VALID)), st.integers(0, 40), st.text(max_size=10))
def test_a_document_with_a_piece_cut_out_or_put_in(start, count, piece):
    parses_or_raises(VALID[:start] + piece + VALID[start + count :])


values = st.recursive(
    st.booleans() | st.integers(-5, 2**70) | st.text(max_size=8) | st.just(ROOT) | st.sampled_from(["/data", "tdx"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = {
    "policy": ["name", "version", "previous", "owner", "role"],
    "reference": ["tees", "measurements", "tcb_statuses", "advisories_allowed", "allow_simulated"],
    "program": ["command", "files", "environment"],
}


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dt.datetime):
        return value.isoformat()
    return (
        json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        if isinstance(value, str)
        else json.dumps(value)
    )


@fuzz
@given(st.sampled_from([(t, f) for t, fields in FIELDS.items() for f in fields]), values)
def test_a_field_of_any_type(place, value):
    table, field = place
    document = tomllib.loads(VALID)
    document[table][field] = value
    text = "\n".join(f"{key} = {toml(content)}" for key, content in document.items())
    tomllib.loads(text)
    parses_or_raises(text)


def places_in(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in inner for place in ((*at, key), *places_in(each, (*at, key)))]


EVERY_KEY = tomllib.loads(every_key())
EVERY_PLACE = places_in(EVERY_KEY)


@fuzz
@given(st.sampled_from(EVERY_PLACE), st.sampled_from(EVERY_PLACE), st.none() | values)
def test_a_document_of_every_key_with_one_thing_changed(place, other, value):
    """Taken out, exchanged for what stands elsewhere, or for anything: reader, explainer, schema and `diff` agree."""
    document = tomllib.loads(every_key())

    def at(place):
        found = document
        for key in place:
            found = found[key]
        return found

    if value is None and place == other:
        del at(place[:-1])[place[-1]]
    else:
        at(place[:-1])[place[-1]] = copy.deepcopy(at(other)) if value is None else value
    text = "".join(f"{toml(key)} = {toml(content)}\n" for key, content in document.items())
    with suppress(PolicyError):
        check_policy(text.encode())


@fuzz
@given(st.text(max_size=40))
@example("a." * 40)
@example('"""')
@example("'''")
@example('# "')
@example('\\"')
@example("\\")
def test_dots_in_strings_are_not_counted_and_others_cannot_hide(text):
    """The limit on dots agrees with the parser on what a string is."""
    value = toml(text)
    quoted = VALID.replace("train.py", "." * 100 + "py")
    parse_policy(quoted)
    with pytest.raises(PolicyError, match="dots in one line"):
        parse_policy(f"x = {value}\n" + "a." * 20 + "b = 1\n")
    with pytest.raises(PolicyError, match="dots in one line"):
        parse_policy(f"x = {{y = {value}, " + "a." * 20 + '"b" = 1}\n')


@pytest.mark.parametrize(
    "before",
    [
        "x = '''a''''' \n",
        'x = """a"""""\n',
        '# """\n',
        "# '''\n",
        'x = "\\""\n',
        "x = '\"'\n",
        'x = """\\""""\n',
        "x = ''\n",
    ],
)
def test_no_quoting_hides_dots(before):
    tomllib.loads(before)
    for after in ("\n", ' # "', " # '''"):
        with pytest.raises(PolicyError, match="dots in one line"):
            parse_policy(before + "a." * 20 + "'b' = 1" + after)


@pytest.mark.parametrize("hidden", ["\x7f", "\x9b", "\u200b", "\u202e", "\u2028", "\ufeff", "\U000e0041", "\u00ad"])
def test_a_character_that_hides_what_a_document_says_is_refused_and_may_be_written_as_an_escape(hidden):
    code = f"U\\+{ord(hidden):04X}"
    for comment in (f"# {hidden}1\n", f"# ü, 木\n#{hidden}"):
        with pytest.raises(PolicyError, match=rf"policy: (holds the unseen character {code} \(at line|not TOML)"):
            parse_policy(comment + VALID)
    [problem] = policy_problems(f"{VALID}\n# a\n# {hidden}")
    assert syntax_line(VALID, problem.error.message) == VALID.count("\n") + 3
    quoted = to_toml(["train", f"a{hidden}b"])
    assert hidden not in quoted
    program = parse_policy(document(KEY, vendor_root=ROOT, more=f"[program]\ncommand = {quoted}\n")).program
    assert program is not None
    assert program.command == ("train", f"a{hidden}b")


# What a policy may say


def with_more(more: str) -> str:
    return document(KEY, vendor_root=ROOT, more=more)


def accepted(text: str) -> bool:
    try:
        parse_policy(text)
    except PolicyError:
        return False
    return True


LONGEST = "a" * 63


@pytest.mark.parametrize("name", ["a/b", f"{LONGEST}/{LONGEST}", "0/0", "a.b-c_d/e", "a/b.."])
def test_names_that_are_names(name):
    assert parse_policy(document(KEY, name=name)).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "A/b",
        "a/../b",
        "../a",
        ".a/b",
        "-a/b",
        "a b/c",
        "ä/b",
        "a/b\n",
        LONGEST + "a/b",
    ],
)
def test_names_that_are_none(name):
    with pytest.raises(PolicyError, match=r"policy.name: got"):
        parse_policy(document(KEY, name=name))


@pytest.mark.parametrize(
    ("mount", "good"),
    [
        ("/data", True),
        ("/a/b c/ü", True),
        ("", True),
        ("/", False),
        ("data", False),
        ("/data/", False),
        ("//data", False),
        ("/a/../b", False),
        ("/a/./b", False),
        ("/..", False),
        ("/a\0b", False),
        ("/a\nb", False),
        ("/" + "a" * 4096, False),
    ],
)
def test_mounts(mount, good):
    vault = f'[[vaults]]\nname = "v"\nmount = {json.dumps(mount)}\naccess = "read-only"\n'
    assert accepted(with_more(vault)) is good


@pytest.mark.parametrize("place", ["program", "secret"])
@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("A", True),
        ("_a1", True),
        ("PATHS", True),
        ("", False),
        ("1A", False),
        ("A B", False),
        ("A=B", False),
        ("Ä", False),
        ("A\n", False),
        ("A" * 128, False),
        *[(name, False) for name in ("PATH", "HOME", "LD_PRELOAD", "PYTHONPATH", "STRONGROOM_X", "SSLKEYLOGFILE")],
        *[(name, False) for name in ("GLIBC_TUNABLES", "GCONV_PATH", "OPENSSL_CONF", "BASH_ENV", "TMPDIR")],
    ],
)
def test_variables(place, name, good):
    if place == "program":
        more = f'[program]\ncommand = ["x"]\n[program.environment]\n{json.dumps(name)} = "v"\n'
    else:
        more = f'[[secrets]]\nname = "s"\nenvironment = {json.dumps(name)}\n'
    assert accepted(with_more(more)) is good


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("[program]\ncommand = []", r"program.command: is empty"),
        ('[program]\ncommand = [""]', r"program.command: starts with an empty string"),
        ('[program]\ncommand = ["a", 1]', r"program.command: wanted an array of strings"),
        ('[program]\ncommand = ["a\\u0000"]', r"program.command: wanted an array of strings"),
        ('[program]\ncommand = ["a"]\nfiles = ["/etc/passwd"]', r"program.files: got '/etc/passwd'"),
        ('[program]\ncommand = ["a"]\nfiles = ["a/../../b"]', r"program.files: got"),
        ('[program]\ncommand = ["a"]\nfiles = [""]', r"program.files: got ''"),
        ('[program]\ncommand = ["a"]\n[program.environment]\nA = 1', r"program.environment.A: wanted a string"),
        ('[program]\ncommand = ["a"]\nshell = true', r"program: unknown key 'shell'; known here: command"),
        ("[program]", r"program.command: missing"),
        ("[surprise]", r"policy document: unknown key 'surprise'"),
        ('[[vaults]]\nname = "v"', r"vaults.access: got NoneType|vaults.access: missing"),
        ('[[vaults]]\nname = "v"\naccess = "all"', r"vaults.access: got 'all', wanted read-only or read-write"),
        ('[[vaults]]\nname = "v:w"\naccess = "read-only"', r"vaults.name: got 'v:w'"),
        ('[[vaults]]\nname = "v"\naccess = "read-only"\n' * 2, r"vaults.name: 'v' appears twice"),
        ('[[secrets]]\nname = "vault:v"\nenvironment = "A"', r"secrets.name: got 'vault:v'"),
        ('[[secrets]]\nname = "s"\nenvironment = "A"\ngenerate = 15', r"secrets.generate: got 15, wanted 16 to 1024"),
        ('[[secrets]]\nname = "s"\nenvironment = "A"\ngenerate = true', r"secrets.generate: got"),
        ('[[secrets]]\nname = "s"\nenvironment = "A"\ngenerate = 0x' + "f" * 9000, r"secrets.generate: got int"),
        ('[[secrets]]\nname = "s"\nenvironment = "A"\n' * 2, r"secrets.name: 's' appears twice"),
        (PROGRAM + '[program.environment]\nTOKEN = "x"', r"secrets.environment: 'TOKEN' appears twice"),
        ("vaults = 1\n", r"vaults|unknown key"),
    ],
)
def test_what_is_refused_is_named(more, says):
    with pytest.raises(PolicyError, match=says):
        parse_policy(with_more(more))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reference": {"tees": []}}, r"reference.tees: is empty, and nothing would pass it"),
        ({"reference": {"measurements": []}}, r"reference.measurements: is empty"),
        ({"reference": {"measurements": None}}, r"reference.measurements: missing"),
        ({"reference": {"measurements": ["AB" * 48]}}, r"reference.measurements: got"),
        ({"reference": {"tees": ["sev"]}}, r"reference.tees: got 'sev', wanted some of sgx, tdx, snp"),
        ({"reference": {"allow_simulated": True}}, r"reference.allow_simulated: got true, wanted the digest of one"),
        ({"reference": {"allow_simulated": "sha256:xyz"}}, r"reference.allow_simulated: got 'sha256:xyz'"),
        ({"reference": {"signer": "x"}}, r"reference: unknown key 'signer'"),
        ({"version": 0}, r"policy.version: got 0"),
        ({"version": -1}, r"policy.version: got -1"),
        ({"version": 2**31}, r"policy.version: got 2147483648"),
        ({"version": True}, r"policy.version: got True"),
        ({"version": "1"}, r"policy.version: got str"),
        ({"owner": "sha256:" + "AB" * 32}, r"policy.owner: got"),
        ({"owner": None}, r"policy.owner: missing"),
        ({"previous": "x"}, r"policy.previous: got 'x'"),
        ({"role": "root"}, r"policy.role: got 'root', wanted program or service"),
    ],
)
def test_heads_that_are_refused_are_named(changes, says):
    with pytest.raises(PolicyError, match=says):
        parse_policy(document(KEY, **changes))


# There and back

# json.dumps writes what lies beyond the basic plane as surrogates, which TOML has not.
characters = st.characters(codec="utf-8", max_codepoint=0xFFFF, exclude_characters="\0")
words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
parts = st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF, categories=["L", "N", "P"]), min_size=1, max_size=8)
paths = st.lists(parts.filter(lambda p: p not in (".", "..") and "/" not in p), min_size=1, max_size=4).map("/".join)
variables = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).map(lambda name: "X" + name)
programs = st.builds(
    lambda head, tail, files, environment: Program((head, *tail), tuple(files), environment),
    st.text(characters, min_size=1, max_size=10).map(as_template),
    st.lists(st.text(characters, max_size=10).map(as_template), max_size=3),
    st.lists(paths, max_size=3),
    st.dictionaries(variables, st.text(characters, max_size=10).map(as_template), max_size=3),
)
places = paths.filter(lambda path: path.split("/")[0] not in TAKEN)
vaults = st.lists(
    st.builds(VaultRule, words, st.just("") | places.map("/".__add__), st.sampled_from(["read-only", "read-write"])),
    max_size=3,
    unique_by=(lambda v: v.name, lambda v: v.mount),
)


@fuzz
@given(
    st.text(max_size=20),
    st.sampled_from(["program", "service"]),
    st.none() | programs,
    vaults,
    st.integers(1, 2**31 - 1),
)
def test_what_the_command_line_writes_is_read_back(label, role, program, rules, version):
    name = policy_name(label, [b"key"])
    content = {
        "name": name,
        "role": role,
        "owner": KEY.public.fingerprint,
        "measurement": "ab" * 48,
        "vendor_root": ROOT,
        "program": program,
        "vaults": rules,
        "version": version,
        "previous": ROOT if version > 1 else "",
    }
    policy = parse_policy(write_policy(**content))
    assert (policy.name, policy.role, policy.version, policy.previous) == (name, role, version, content["previous"])
    assert (policy.program, policy.vaults, policy.secrets) == (program, tuple(rules), ())
    assert (policy.owner, policy.reference.allow_simulated) == (KEY.public.fingerprint, ROOT)
    assert (policy.reference.tees, policy.reference.measurements) == (("simulated",), ("ab" * 48,))


# Signatures and succession


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 63), st.integers(0, 7), st.integers(0, len(VALID) - 1))
def test_a_signature_is_of_every_byte_by_one_key(position, bit, place):
    signature = sign_policy(VALID, KEY)
    verify_policy(VALID, signature, KEY.public)
    broken = bytearray(signature)
    broken[position] ^= 1 << bit
    for text, shown, key in (
        (VALID, bytes(broken), KEY.public),
        (VALID[:place] + VALID[place + 1 :], signature, KEY.public),
        (VALID, signature, SigningKey.generate().public),
        (VALID, KEY.sign(VALID.encode()), KEY.public),
    ):
        with pytest.raises(VerificationError, match="policy: signature"):
            verify_policy(text, shown, key)


@fuzz
@given(st.integers(1, 4), st.sampled_from(["", ROOT, "current"]), st.booleans())
def test_only_the_next_version_follows(version, previous, same_owner):
    current = parse_policy(document(KEY, version=2, previous=ROOT))
    previous = current.digest if previous == "current" else previous
    new = parse_policy(document(KEY if same_owner else SigningKey.generate(), version=version, previous=previous))
    if (version, previous, same_owner) == (3, current.digest, True):
        check_succession(new, current)
    else:
        with pytest.raises(StrongroomError, match=r"policy\.(version|previous|owner): got"):
            check_succession(new, current)
