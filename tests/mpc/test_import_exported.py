"""Programs of `torch.export`, from a file or in memory, run on secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import ModelFormatError
from tests.mpc.imported import on_secrets


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head, self.last = nn.Linear(3, 2), nn.BatchNorm1d(2)
        for norm in (self.norm, self.last):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)) + x)
        return self.last(self.head(x.mean((2, 3)))).softmax(-1)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_network_with_batch_normalisations(tmp_path: Path, dynamic: bool) -> None:
    torch.manual_seed(3)
    net, x, path = _Residual().eval(), torch.randn(2, 3, 6, 6), tmp_path / "m.pt2"
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=shapes), path)
    model, wanted = mpc.load_model(path), net(x).detach()
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(on_secrets(model, lambda: mpc.load_architecture(path), x), wanted, rtol=0, atol=1e-3)
    zeros = mpc.load_architecture(path).state_dict()
    assert zeros.keys() == model.state_dict().keys()
    assert not any(bool(each.any()) for each in zeros.values() if each.is_floating_point())


def test_a_transformer_in_memory() -> None:
    torch.manual_seed(4)
    net, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(1, 4, 8)
    program = torch.export.export(net, (x,))
    found = on_secrets(mpc.load_model(program), lambda: mpc.load_architecture(program), x)
    torch.testing.assert_close(found, net(x).detach(), rtol=0, atol=1e-3)


def test_a_program_that_looks_up_secret_indices() -> None:
    net, x = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval(), torch.tensor([[1, 9, 0]])
    program = torch.export.export(net, (x,))
    found = on_secrets(mpc.load_model(program), lambda: mpc.load_architecture(program), x, classes=10)
    torch.testing.assert_close(found, net(x).detach(), rtol=0, atol=1e-3)


def test_a_network_in_training_is_refused() -> None:
    program = torch.export.export(nn.BatchNorm1d(3).train(), (torch.randn(4, 3),))
    with pytest.raises(ModelFormatError, match="takes a batch's own statistics"):
        mpc.load_model(program)
