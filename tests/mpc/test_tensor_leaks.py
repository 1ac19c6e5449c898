"""Whatever torch, NumPy and Python offer to get at a tensor's elements gives a secret again, or raises."""

import copy
import io
import multiprocessing.reduction
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset, default_collate

from strongroom import mpc

VALUES = torch.tensor([[1.25, 2.5, 3.75], [4, 5, 6]])


def plain(*shape):
    return torch.zeros(shape or (2, 3))


def safetensors(s):
    return pytest.importorskip("safetensors.torch").save({"w": s})


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return x @ self.weight.t()


class Subclass(torch.Tensor):
    pass


_one = threading.Lock()


def alone(attempt):
    """One party after the other: torch's tracers keep what they do in globals, and the parties here are threads."""

    def attempted(s, i):
        with _one:
            return attempt(s, i)

    return attempted


# `s` is a secret of shape (2, 3), `i` one of three indices below 2.
ATTEMPTS = {
    # Conversions
    "torch.tensor": lambda s, i: torch.tensor(s),
    "torch.as_tensor": lambda s, i: torch.as_tensor(s),
    "torch.asarray": lambda s, i: torch.asarray(s),
    "torch.Tensor": lambda s, i: torch.Tensor(s),
    "torch.FloatTensor": lambda s, i: torch.FloatTensor(s),
    "new_tensor": lambda s, i: plain().new_tensor(s),
    "list of rows": lambda s, i: torch.tensor(list(s)),
    "as_subclass": lambda s, i: s.as_subclass(torch.Tensor),
    "as another subclass": lambda s, i: s.as_subclass(Subclass),
    "torch.frombuffer": lambda s, i: torch.frombuffer(s, dtype=torch.float32),
    "numpy": lambda s, i: np.asarray(s, dtype=np.float64),
    "numpy functions": lambda s, i: [np.sum(s), np.add(s, 1), np.mean(s)],
    "numpy of rows": lambda s, i: np.stack([s[0], s[1]]),
    "numpy of a plain one": lambda s, i: np.add(plain().numpy(), s),
    "numpy item": lambda s, i: np.zeros(6)[i[0]],
    "numpy assigned": lambda s, i: np.zeros((2, 3)).__setitem__(0, s[0]),
    "memoryview": lambda s, i: memoryview(s),
    "bytes": lambda s, i: bytes(s),
    "bytearray": lambda s, i: bytearray(s),
    "dlpack": lambda s, i: [torch.from_dlpack(s), np.from_dlpack(s)],
    "array interface": lambda s, i: s.__array_interface__,
    "cuda array interface": lambda s, i: s.__cuda_array_interface__,
    "force": lambda s, i: s.numpy(force=True),
    "typed storage": lambda s, i: s._typed_storage(),
    "resolved": lambda s, i: s.resolve_conj().resolve_neg().contiguous(),
    "sparse": lambda s, i: s.to_sparse(),
    "mkldnn": lambda s, i: s.to_mkldnn(),
    "quantised": lambda s, i: torch.quantize_per_tensor(s, 0.1, 0, torch.qint8),
    "complex": lambda s, i: torch.view_as_complex(s[:, :2]),
    "bits": lambda s, i: s.view(torch.uint8),
    "bfloat16": lambda s, i: s.bfloat16(),
    "cuda": lambda s, i: s.cuda(),
    "named": lambda s, i: s.rename("a", "b"),
    "item of an index": lambda s, i: i[0].item(),
    "python numbers": lambda s, i: [float(s.sum()), int(i[0]), complex(s[0, 0])],
    "round": lambda s, i: round(s[0, 0]),
    "format": lambda s, i: f"{s[0, 0]:.3f} {s} {i!r} {(s > 0)!r}".replace("SharedTensor", ""),
    "format of a number": lambda s, i: "%f" % s[0, 0],  # noqa: UP031
    # Files, processes and copies
    "torch.save": lambda s, i: torch.save(nn.Parameter(s, requires_grad=False), io.BytesIO()),
    "state": lambda s, i: torch.save(Linear(s).state_dict(), io.BytesIO()),
    "module": lambda s, i: pickle.dumps(Linear(s)),
    "safetensors": lambda s, i: safetensors(s),
    "copy": lambda s, i: copy.copy(s),
    "deepcopy": lambda s, i: copy.deepcopy([s, i]),
    "to another process": lambda s, i: multiprocessing.reduction.ForkingPickler.dumps(s),
    "to another torch process": lambda s, i: torch.multiprocessing.reductions.reduce_tensor(s),
    "shared memory": lambda s, i: s.share_memory_(),
    "collated": lambda s, i: default_collate([s, s]),
    "collated into memory": lambda s, i: torch.stack([s, s], out=plain(2, 2, 3)),
    "loader": lambda s, i: [batch[0] for batch in DataLoader(TensorDataset(s), batch_size=2)],
    # Steering
    "branch": lambda s, i: 1 if (s > 0).all() else 0,
    "builtin max": lambda s, i: max(s[0]),
    "builtin sum": lambda s, i: sum(s[0]),
    "sorted": lambda s, i: sorted(s[0], key=lambda e: e),
    "in a list": lambda s, i: s[0, 0] in [1.0, 1.25],
    "list index": lambda s, i: [1.0, 1.25].index(s[0, 0]),
    "in a secret": lambda s, i: 1.25 in s,
    "dictionary": lambda s, i: {1.25: 1}.get(s[0, 0], s),
    "range": lambda s, i: range(i[0]),
    "slice": lambda s, i: plain()[: i[0]],
    "where alone": lambda s, i: torch.where(s > 0),
    "nonzero": lambda s, i: [(s > 0).nonzero(), torch.count_nonzero(s)],
    "allclose": lambda s, i: torch.allclose(s, plain()),
    "equal": lambda s, i: torch.equal(i, i),
    "is_nonzero": lambda s, i: torch.is_nonzero(s[0, 0]),
    "masked_select": lambda s, i: s.masked_select(s > 0),
    "selected": lambda s, i: s[s > 0],
    "assigned": lambda s, i: s.__setitem__(s > 0, 0.0),
    "unique": lambda s, i: i.unique(),
    "bincount": lambda s, i: torch.bincount(i),
    "histogram": lambda s, i: torch.histc(s),
    "sort": lambda s, i: s.sort(),
    "searchsorted": lambda s, i: torch.searchsorted(torch.arange(3.0), s),
    "bucketize": lambda s, i: torch.bucketize(s, torch.arange(3.0)),
    "repeated": lambda s, i: plain(3).repeat_interleave(i),
    "full": lambda s, i: torch.full((2,), s[0, 0]),
    "arange": lambda s, i: torch.arange(i[0]),
    "sampled": lambda s, i: [torch.bernoulli(s.sigmoid()), torch.multinomial(s, 1), torch.normal(s, 1.0)],
    "initialised": lambda s, i: nn.init.xavier_uniform_(s),
    "dropout": lambda s, i: F.dropout(s),
    "one hot": lambda s, i: plain(2, 3)[F.one_hot(i)],
    "bag": lambda s, i: F.embedding_bag(i[None], plain()),
    # Written into plain tensors
    "copied": lambda s, i: [each.copy_(s) for each in [plain()]],
    "copied row": lambda s, i: plain().__setitem__((0, slice(None)), s[0]),
    "filled": lambda s, i: plain().fill_(s[0, 0]),
    "at a secret": lambda s, i: plain().__setitem__(i, 1.0),
    "masked": lambda s, i: plain().masked_fill_(s > 0, 1.0),
    "masked with": lambda s, i: plain().masked_fill_(VALUES > 0, s[0, 0]),
    "scattered": lambda s, i: plain().scatter_(1, i[None], 1.0),
    "index_copy": lambda s, i: plain().index_copy_(0, torch.tensor([0]), s[:1]),
    "index_add": lambda s, i: plain().index_add_(0, torch.tensor([0]), s[:1]),
    "index_fill": lambda s, i: plain().index_fill_(0, i, 1.0),
    "put": lambda s, i: plain().put_(torch.tensor([0]), s[0, :1]),
    "addmm": lambda s, i: plain(2, 2).addmm_(s, s.t()),
    "swapped data": lambda s, i: setattr(plain(), "data", s),
    "out": lambda s, i: [torch.matmul(s, s.t(), out=plain(2, 2)), torch.cat([s, s], out=plain(4, 3))],
    "out of a function": lambda s, i: torch.sigmoid(s, out=plain()),
    "out of a sum": lambda s, i: torch.sum(s, 0, out=plain(3)),
    "out of a comparison": lambda s, i: torch.gt(s, 0, out=plain().bool()),
    "out of a norm": lambda s, i: torch.linalg.vector_norm(s, out=plain(1)[0]),
    "foreach": lambda s, i: torch._foreach_copy_([plain()], [s]),
    "foreach products": lambda s, i: torch._foreach_mul_([plain()], [s]),
    "foreach lerp": lambda s, i: torch._foreach_lerp_([plain()], [s], 0.5),
    "functional buffers": lambda s, i: F.batch_norm(s, plain(3), plain(3), training=True),
    "vector to parameters": lambda s, i: nn.utils.vector_to_parameters(s.flatten(), [nn.Parameter(plain())]),
    "module state": lambda s, i: nn.Linear(3, 2).load_state_dict({"weight": s, "bias": s[:, 0]}),
    "resized": lambda s, i: s.resize_(6),
    "set": lambda s, i: plain().set_(s),
    # Tracers and transforms
    "compile": alone(lambda s, i: torch.compile(lambda x: x + 1, backend="eager")(s)),
    "make_fx": alone(lambda s, i: torch.fx.experimental.proxy_tensor.make_fx(lambda x: x + 1)(s)),
    "symbolic": alone(lambda s, i: torch.fx.symbolic_trace(Linear(s)).code),
    "trace": alone(lambda s, i: torch.jit.trace(lambda x: x + 1, (s,))),
    "export": alone(lambda s, i: torch.export.export(Linear(s), (plain(),))),
    "onnx": alone(lambda s, i: torch.onnx.export(Linear(s), (plain(),), io.BytesIO(), dynamo=False)),
    "vmap": lambda s, i: torch.func.vmap(torch.sum)(s),
    "grad": lambda s, i: torch.func.grad(lambda x: x.sum())(s),
    "jvp": lambda s, i: torch.func.jvp(torch.sum, (s,), (s,)),
    "functionalize": lambda s, i: torch.func.functionalize(lambda x: x.add_(1))(s),
    "functional_call": lambda s, i: torch.func.functional_call(Linear(plain()), {"weight": s}, (plain(),)),
    "forward AD": lambda s, i: torch.autograd.forward_ad.make_dual(s, s),
    "hook": lambda s, i: s.register_hook(print),
    "saved": lambda s, i: torch.utils.checkpoint.checkpoint(lambda x: x * 2, s, use_reentrant=False),
    "autocast": lambda s, i: torch.autocast("cpu")(lambda: s @ s.t())(),
    "linear algebra": lambda s, i: [torch.linalg.inv(s[:, :2]), torch.linalg.svd(s)],
    "fourier": lambda s, i: torch.fft.fft(s),
    "without functions": lambda s, i: _without_functions(s),
}


def _without_functions(s):
    with torch._C.DisableTorchFunctionSubclass():
        return [s + 1, s * s, torch.relu(s)]


@pytest.fixture(scope="module")
def outcomes():
    """How each attempt ended at P0; all in one world, which survives them."""

    def program():
        found = {}
        for name, function in ATTEMPTS.items():
            s = mpc.share(lambda: VALUES, source=0, shape=(2, 3))
            i = mpc.share(lambda: torch.tensor([1, 0, 1]), source=0, shape=(3,), dtype=torch.int64, classes=2)
            try:
                found[name] = function(s, i)
            except Exception as error:
                found[name] = error
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what it is asked to do here
        with mpc.local_world() as world:
            return world.run(program)[0]


def _hidden(value):
    """Whether a value gives no element away."""
    if isinstance(value, list | tuple):
        return all(map(_hidden, value))
    return value is None or isinstance(value, mpc.SharedTensor) or (isinstance(value, str) and "25" not in value)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_it_stays_secret(name, outcomes):
    outcome = outcomes[name]
    if isinstance(outcome, Exception):
        assert "1.25" not in str(outcome) + str(getattr(outcome, "hint", ""))
    else:
        assert _hidden(outcome), outcome
