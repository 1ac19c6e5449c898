"""Templates: text comes out as it went in, secrets where they are named, and values are never looked at again."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strongroom.cas.policy.program import Program
from strongroom.cas.policy.templates import as_template, parse_template
from strongroom.errors import PolicyError

fuzz = settings(max_examples=100, deadline=None)
# What is likely to go wrong: dollars, braces and what looks like a place.
texts = st.lists(st.sampled_from(["$", "{", "}", "${", "$${", "secret.", "a", "${secret.a}", "\n", "ü"])).map("".join)
anything = texts | st.text(max_size=30)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)


@fuzz
@given(anything)
@example("$${")
@example("$$${secret.a}")
def test_any_text_can_be_said(text):
    template = parse_template(as_template(text))
    assert template.names == set()
    assert template.render({}) == text


@fuzz
@given(st.lists(st.tuples(anything.filter(lambda t: not t.endswith("$")), names)), anything, st.data())
def test_each_place_takes_its_value_and_no_value_is_looked_at(parts, last, data):
    values = {name: data.draw(anything) for _, name in parts}
    written = "".join(f"{as_template(text)}${{secret.{name}}}" for text, name in parts)
    template = parse_template(written + as_template(last))
    assert template.names == {name for _, name in parts}
    assert template.render(values) == "".join(text + values[name] for text, name in parts) + last


@fuzz
@given(anything)
def test_whatever_the_text_it_is_a_template_or_refused(text):
    try:
        template = parse_template(text)
    except PolicyError as error:
        assert "wanted ${secret.NAME}" in error.message
        return
    rendered = template.render(dict.fromkeys(template.names, "\x00"))
    assert rendered.count("\x00") - text.count("\x00") == len(template.places)


@pytest.mark.parametrize(
    "text",
    [
        *("${", "${}", "${secret}", "${secret.}", "${secret.a", "${secret.-a}", "${secret.a b}", "${ secret.a}"),
        *("${env.X}", "${HOME}", "${SECRET.a}", "${secret.a}${", "${secret.${secret.a}}"),
        "${secret." + "a" * 64 + "}",
    ],
)
def test_what_is_no_place_of_a_secret_is_refused(text):
    with pytest.raises(PolicyError, match=r"template: got '\$\{.*wanted \$\{secret.NAME\}") as raised:
        parse_template(text)
    assert raised.value.hint is not None
    assert "write $${" in raised.value.hint


def test_bytes_come_out_as_they_were():
    value = bytes(range(1, 256))
    rendered = parse_template("a${secret.k}ü").render({"k": value, "other": b"x"})
    assert rendered.encode("utf-8", "surrogateescape") == b"a" + value + "ü".encode()


def test_a_missing_secret_is_named_and_no_value_is():
    with pytest.raises(PolicyError, match="template: the secret b is missing") as raised:
        parse_template("${secret.a}${secret.b}").render({"a": "swordfish"})
    assert "swordfish" not in str(raised.value)


def test_many_places_take_no_longer_than_their_length():
    text = "$${" * 80_000 + "${secret.a}" * 20_000
    assert len(parse_template(text).places) == 20_000
    with pytest.raises(PolicyError):
        parse_template(text + "${")


def test_a_command_line_is_a_program_of_its_very_words():
    program = Program.literal(["sh", "-c", "echo ${HOME} $${x}"], ["a"], {"A": "${B}"})
    assert [parse_template(word).render({}) for word in program.command] == ["sh", "-c", "echo ${HOME} $${x}"]
    assert parse_template(program.environment["A"]).render({}) == "${B}"
