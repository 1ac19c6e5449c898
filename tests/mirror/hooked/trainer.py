"""A trainer class that counts steps by itself, in a ``while`` around two loaders; workers that stay; frozen layers.

``trainer.py LOG``
"""

import hashlib
import itertools
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler


class Trainer:
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 2))
        self.model[0].requires_grad_(False)
        self.optimizer = torch.optim.RMSprop(self.model.parameters(), lr=0.01, momentum=0.5)
        warm = torch.optim.lr_scheduler.LinearLR(self.optimizer, 0.1, total_iters=5)
        later = torch.optim.lr_scheduler.StepLR(self.optimizer, 7, gamma=0.5)
        self.schedule = torch.optim.lr_scheduler.SequentialLR(self.optimizer, [warm, later], milestones=[5])
        data = TensorDataset(torch.randn(40, 5), torch.randint(0, 2, (40,)))
        sampler = WeightedRandomSampler(torch.rand(40), 40)
        self.labelled = DataLoader(data, batch_size=8, sampler=sampler, num_workers=1, persistent_workers=True)
        self.unlabelled = DataLoader(data, batch_size=5, shuffle=True)
        self.hidden = torch.zeros(1)
        self.history = {}
        self.step = 0

    def fit(self, most):
        while self.step < most:
            for i, ((rows, labels), (more, _)) in enumerate(
                zip(self.labelled, itertools.islice(self.unlabelled, 4), strict=False)
            ):
                self.update(i, rows, labels, more)
                if self.step >= most:
                    return self.history
            import late

            late.count(self.step)
            if self.step > most // 2:
                self.model[0].requires_grad_(True)
        return None

    def update(self, i, rows, labels, more):
        loss = nn.functional.cross_entropy(self.model(rows), labels)
        loss = loss + 0.1 * self.model(more).square().mean() + self.hidden.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.hidden = 0.9 * self.hidden + loss.detach()
        self.history.setdefault(i, []).append(loss.item())
        self.step += 1
        with Path(sys.argv[1]).open("a") as log:
            log.write(f"s{self.step} done\n")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(9)
    trainer = Trainer()
    history = trainer.fit(70)
    import late

    digest = hashlib.sha256(
        repr((history, late.counted, trainer.step, trainer.optimizer.param_groups[0]["lr"])).encode()
    )
    for tensor in (*trainer.model.state_dict().values(), trainer.hidden):
        digest.update(tensor.numpy().tobytes())
    with Path(sys.argv[1]).open("a") as log:
        log.write(f"end {digest.hexdigest()}\n")


if __name__ == "__main__":
    main()
