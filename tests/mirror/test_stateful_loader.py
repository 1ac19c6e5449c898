"""A training on torchdata's StatefulDataLoader goes on in the middle of an epoch, in the same order."""

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from strongroom import mirror
from strongroom.mirror.torch import Training
from strongroom.sealed import NO_FRESHNESS
from strongroom.storage import MemoryDirectory

loaders = pytest.importorskip("torchdata.stateful_dataloader")

KEY = bytes(32)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*set_vital.*is deprecated:UserWarning"),  # torchdata calls it
]


class Counting(IterableDataset):
    """Numbers in order, from the place that it is told: no sampler could find it again."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        while self.at < 40:
            self.at += 1
            yield torch.full((3,), float(self.at)), torch.tensor(float(self.at))
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def table():
    return TensorDataset(torch.arange(120.0).reshape(40, 3), torch.arange(40.0))


@pytest.mark.parametrize(
    ("dataset", "options"), [(table, {"shuffle": True}), (Counting, {})], ids=["shuffled", "iterable"]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_goes_on(dataset, options, workers):
    def train(directory, until):
        """The losses of the steps up to `until`, from the mirror on."""
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters())
        loader = loaders.StatefulDataLoader(dataset(), batch_size=4, num_workers=workers, **options)
        with mirror.open(directory, key=KEY, anchor=NO_FRESHNESS) as opened:
            training = Training(opened, model=model, optimizer=optimizer, loader=loader)
            training.restore()
            losses = dict(training.values)
            for _, batches in training.epochs(2):
                for inputs, wanted in batches:
                    optimizer.zero_grad()
                    loss = (model(inputs).squeeze(1) - wanted).square().mean()
                    loss.backward()
                    optimizer.step()
                    losses[str(training.step + 1)] = float(loss.detach())
                    training.commit(**losses)
                    if training.step == until:
                        return losses
        return losses

    whole = train(MemoryDirectory(), 99)
    assert len(whole) >= 20
    directory = MemoryDirectory()
    for until in (3, 8, 9, 14, 99):
        found = train(directory, until)
    assert found == whole
