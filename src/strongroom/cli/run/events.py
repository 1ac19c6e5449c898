"""What an enclave reports, in words for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_event(name: str, detail: Mapping[str, Any]) -> str | None:
    """An enclave's report in words; None for those that say nothing new to a person."""
    match name:
        case "attested":
            given = [f"the keys of: {', '.join(detail['vaults'])}"] if detail["vaults"] else []
            given += [f"the secrets: {', '.join(detail['secrets'])}"] if detail.get("secrets") else []
            return f"attested; the CAS released {' and '.join(given) or 'nothing, which is what its policy names'}"
        case "vault":
            return f"vault {detail['vault']} at {detail['mount']}: {detail['how']}"
        case "sealed":
            return f"vault {detail['vault']}: {_describe_sealed(detail)}"
        case "mirror":
            return _describe_mirror(detail)
        case "mesh":
            others = detail["members"]
            return f"mesh: {detail['name']} is {detail['address']}; {others} other member{'s' * (others != 1)} so far"
        case "mesh-ended":
            refused = [f"{count} by {why}" for why, count in detail["refusals"].items() if count]
            name = "mesh" if detail["limit"] else "network"  # of an enclave without a mesh
            return f"{name}: refused: {', '.join(refused)}" if refused else None
        case "published":
            name = f" in the name {detail['host']}" if detail["host"] else ""
            return f"published: {detail['name']} at {detail['endpoint']}, by TLS 1.3{name} under the CAS's root"
        case "outside-ended":
            told = [_describe_outside(f"{each['host']}:{each['port']}", each) for each in detail["egress"]]
            told += [_describe_outside(str(each["name"]), each) for each in detail["published"]]
            return f"outside: {'; '.join(told)}"
        case "notice":
            return str(detail["text"])
    return None


def _describe_outside(name: str, told: Mapping[str, Any]) -> str:
    opened = told["opened"]
    text = f"{name} {opened} connection{'s' * (opened != 1)}"
    text += f", {told['sent']:,} bytes out, {told['received']:,} in" if opened else ""
    cut = told["refusals"].get("cut", 0)  # many servers and clients go so
    text += f", {cut} ended without a word" if cut else ""
    doubts = {"certificate": f" ({told['doubt']})"} if told.get("doubt") else {}
    refusals = [(why, count) for why, count in told["refusals"].items() if count and why != "cut"]
    refused = [f"{count} by {why}{doubts.get(why, '')}" for why, count in refusals]
    return text + (f", refused {', '.join(refused)}" if refused else "")


def _describe_sealed(detail: Mapping[str, Any]) -> str:
    count = detail.get("count", len(detail["files"]))  # of many files the report names the first
    written, removed = detail.get("written", count), detail.get("removed", 0)
    text = f"sealed {written} file{'s' * (written != 1)}"
    text += f", removed {removed}" if removed else ""
    kept = count - written
    return text + (f"; {kept} {'are' if kept != 1 else 'is'} as before" if kept else "")


def _describe_mirror(detail: Mapping[str, Any]) -> str | None:
    match detail["what"]:
        case "begins":
            return "mirror: begins"
        case "resumes" if "since" in detail:
            return f"mirror: repeats the steps from {detail['since']} to {detail['step']}"
        case "resumes":
            return f"mirror: resumes from step {detail['step']} (not proved)"
        case "resumed" if "since" in detail:
            apart = f"; these differ, as times do: {', '.join(detail['apart'])}" if detail["apart"] else ""
            return f"mirror: resumes from step {detail['step']} (proved on the steps since {detail['since']}{apart})"
        case "left-out":
            return f"mirror: nothing is committed: {detail['why']}"
        case "not-captured":
            return f"mirror: not captured: {detail['names']}"
        case "ended":
            count = detail["commits"]
            return f"mirror: {count} commit{'s' * (count != 1)}, the newest of step {detail['step']}"
    return None
