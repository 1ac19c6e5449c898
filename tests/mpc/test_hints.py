"""What is said of an operand or an operator that secrets do not take."""

import pytest
import torch
from torch import nn

from strongroom import mpc
from strongroom.errors import UsageError

REFUSED = {
    "zero": (lambda x: x / 0, "division: got a divisor of 0", None),
    "zeros": (lambda x: x / torch.tensor([1.0, 0.0]), "division: got a divisor of 0", None),
    "zero in place": (lambda x: x.div_(0), "division: got a divisor of 0", None),
    "small": (lambda x: x / 1e-9, r"operand: got 1e\+09, wanted a number of magnitude below 2\^", "scale"),
    "factor": (lambda x: x * 40_000, "operand: got 40000, wanted", "scale"),
    "summand": (lambda x: x + 1e9, r"operand: got 1e\+09, wanted", "scale"),
    "no number": (lambda x: x * float("nan"), "operand: got nan, wanted", "scale"),
    "compared": (lambda x: x > 1e9, r"operand: got 1e\+09, wanted", "scale"),
    "chosen": (lambda x: torch.where(x > 0, 1e9, x), r"operand: got 1e\+09, wanted", "scale"),
    "dropout": (nn.Dropout(), "native_dropout", "model.eval()"),
    "features": (nn.Dropout1d(), "bernoulli_", "model.eval()"),
    "drawn": (lambda x: x.normal_(), "normal_", "share what was drawn"),
    "round": (torch.round, "round", "no protocol: nothing rounds"),
    "remainder": (lambda x: x % 2, "remainder", "no protocol: nothing rounds"),
    "floor": (lambda x: x // 2, "floor_divide", "no protocol: nothing rounds"),
    "sine": (torch.sin, "sin", "no protocol: write it with"),
    "cumulative product": (lambda x: x.cumprod(0), "cumprod", "loop over the slices"),
    "determinant": (torch.linalg.det, "det", "reveal the matrix"),
    "inverse": (torch.linalg.inv, "inv", "reveal the matrix"),
    "into plain": (lambda x: torch.zeros(2, 2).copy_(x), "copy_", "cannot be written into a plain tensor"),
}


@pytest.mark.parametrize(("function", "message", "hint"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named_with_what_to_do(function, message, hint):
    def program():
        return function(mpc.share(lambda: torch.ones(2, 2), source=0, shape=(2, 2)))

    with pytest.raises(UsageError, match=message) as caught, mpc.local_world() as world:
        world.run(program)  # without a warning of numpy's, which would be an error here
    assert (hint or "") in (caught.value.hint or "")
