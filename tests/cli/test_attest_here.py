"""`attest here --simulated`: evidence to try the other commands with, which says that it proves nothing."""

from __future__ import annotations

import json

from strongroom.attest.evidence import Evidence
from strongroom.cli.main import main


def test_simulated_evidence_goes_through_the_whole_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    evidence, policy = tmp_path / "evidence.json", tmp_path / "policy.toml"
    assert main(["attest", "here", "--simulated", "--nonce", "abc", "--out", str(evidence)]) == 0
    assert "protects nothing" in capsys.readouterr().err
    assert Evidence.from_wire(json.loads(evidence.read_text())).tee == "simulated"
    assert main(["attest", "appraise", "--draft-policy", str(evidence)]) == 0
    policy.write_text(capsys.readouterr().out)
    assert main(["attest", "appraise", "--policy", str(policy), "--nonce", "abc", str(evidence)]) == 0
    assert main(["attest", "appraise", "--policy", str(policy), "--nonce", "abd", str(evidence)]) == 34
    strict = policy.read_text().replace("[reference]", "[reference]\nmaximum_age = 60")
    policy.write_text(strict)
    assert main(["attest", "appraise", "--policy", str(policy), "--nonce", "abc", str(evidence)]) == 37
