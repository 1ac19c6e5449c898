"""An enclave that was measured with reference values for its CAS appraises that before it shows anything of itself."""

import pytest

from strongroom.attest.claims import registers_measurement
from strongroom.attest.tee.simulated import SimulatedAttester
from strongroom.cas import running_cas
from strongroom.cli.main import main
from strongroom.cli.workspace import Home
from strongroom.enclave import launch as launcher
from strongroom.enclave.config import BootConfig
from strongroom.errors import MeasurementError, PolicyError, SimulatedEnclaveError
from tests.cas.world import MEASURED
from tests.enclave import conftest

SOURCE = "print('shown')"


@pytest.fixture(scope="module")
def home_and_cas(tmp_path_factory):
    """A CAS in a simulated enclave."""
    home = Home.open(tmp_path_factory.mktemp("home"))
    with running_cas(home.path / "cas", attester=SimulatedAttester(home.vendor(), MEASURED)) as cas:
        yield home, cas


def document(home, **changes):
    rows = {
        "tees": '["simulated"]',
        "measurements": f'["{registers_measurement(MEASURED)}"]',
        "allow_simulated": f'"{home.vendor().root_digest}"',
        **changes,
    }
    return "[reference]\n" + "".join(f"{name} = {value}\n" for name, value in rows.items())


@pytest.fixture
def measured_with(world, bubblewrap, monkeypatch):
    """A job whose enclave was measured with a document, and each time that an enclave asked for evidence of its own."""
    asked = []
    real = conftest.boot_config

    class Counting(launcher.HostSide):
        def _answer(self, message):
            asked.extend([message["op"]] if message.get("op") == "evidence" else [])
            super()._answer(message)

    def job(text):
        monkeypatch.setattr(conftest, "boot_config", lambda *words, **more: real(*words, **more, cas_reference=text))
        return world.job(SOURCE)

    monkeypatch.setattr(launcher, "HostSide", Counting)
    return job, asked


def test_a_cas_that_is_as_measured_is_shown_evidence(world, measured_with):
    job, asked = measured_with
    assert job(document(world.home)).run() == (0, "shown\n")
    assert asked


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"measurements": f'["{"0" * 96}"]'}, MeasurementError),
        ({"allow_simulated": f'"sha256:{"0" * 64}"'}, SimulatedEnclaveError),
    ],
)
def test_a_cas_of_other_code_or_vendor_gets_nothing(world, measured_with, changes, error):
    """Under its own root key, which is all that an enclave without reference values asks for."""
    job, asked = measured_with
    with pytest.raises(error):
        job(document(world.home, **changes)).run()
    assert asked == []


def test_what_the_host_measures_without_is_another_enclave(world, measured_with):
    """A host that leaves the reference values out starts something that no policy names."""
    job, _ = measured_with
    text = document(world.home)
    config = job(text).config
    assert BootConfig.from_bytes(config.to_bytes()).cas_reference == text
    assert job(text).policy.reference.measurements != job("").policy.reference.measurements


def test_a_document_without_reference_values_is_refused_before_anything(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(SOURCE)
    (tmp_path / "none.toml").write_text("a = 1\n")
    words = ["measure", "--cas-root", "sha256:" + "0" * 64, "--cas-reference", "none.toml", "--", "python", "job.py"]
    assert main(words) == PolicyError.exit_code
    assert "has no table [reference]" in capsys.readouterr().err
