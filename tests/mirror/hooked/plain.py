"""A training without loaders: slices of a permutation, two optimizers in turns, two phases, and a ``while``.

``plain.py LOG``
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)
rng = np.random.default_rng(5)
rows = torch.from_numpy(rng.normal(size=(64, 6)).astype(np.float32))
model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 6))
critic = nn.Linear(6, 1)
one = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
other = torch.optim.Adam(critic.parameters(), lr=0.01, amsgrad=True)
plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(one, patience=1)
confusion = np.zeros((2, 3), np.int64)
losses = []


def say(text):
    with Path(sys.argv[1]).open("a") as log:
        log.write(text + "\n")


def phase(epochs):
    for epoch in range(epochs):
        order = rng.permutation(64)
        total = 0.0
        for picked in torch.from_numpy(order).split(16):
            for _ in range(2):
                critic_loss = critic(model(rows[picked]).detach()).mean() - critic(rows[picked]).mean()
                other.zero_grad()
                critic_loss.backward()
                other.step()
            loss = nn.functional.mse_loss(model(rows[picked]), rows[picked]) - critic(model(rows[picked])).mean()
            one.zero_grad(set_to_none=False)
            loss.backward()
            one.step()
            total += loss.item()
            losses.append(loss.item())
            confusion[epoch % 2, len(losses) % 3] += 1
            say(f"s{len(losses)} done")
        plateau.step(total)


phase(6)
phase(10)
at = 0
while at < 12:
    loss = nn.functional.mse_loss(model(rows + 0.1 * torch.randn(64, 6)), rows)
    one.zero_grad()
    loss.backward()
    one.step()
    at += 1
    losses.append(loss.item())
    say(f"s{len(losses)} done")
digest = hashlib.sha256(repr((losses, confusion.tolist(), at, one.param_groups[0]["lr"])).encode())
for tensor in (*model.state_dict().values(), *critic.state_dict().values()):
    digest.update(tensor.numpy().tobytes())
say(f"end {digest.hexdigest()}")
