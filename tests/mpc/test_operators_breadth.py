"""PyTorch's functions on secrets, each beside float64: name, function, shapes of its secret inputs, error allowed."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tests.mpc.tensors import in_the_clear, on_secrets

CLOSE = 5e-4
EYE = torch.eye(3)
MASK = torch.tensor([[True, False, True], [False, True, True]])
AT = torch.tensor([[2, 0, 1], [1, 1, 0]])

# Of one or two secrets of shape (2, 3) with elements of about -3 to 3.
TABLE = {
    # Each element
    "sqrt": lambda x, y: (x.abs() + 0.01).sqrt(),
    "log": lambda x, y: torch.log(x.abs() + 0.01) + torch.log1p(y.abs()),
    "erf": lambda x, y: torch.erf(x),
    "gelu by erf": lambda x, y: x * 0.5 * (1.0 + torch.erf(x / 1.4142135)),
    "gelu tanh": lambda x, y: F.gelu(x, approximate="tanh"),
    "gelu tanh by hand": lambda x, y: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0)))),
    "softplus": lambda x, y: F.softplus(x) + F.softplus(y, beta=2) + F.logsigmoid(x),
    "elu": lambda x, y: F.elu(x) + F.selu(y) + F.celu(x, 2.0),
    "prelu": lambda x, y: F.prelu(x, torch.tensor([0.1, 0.2, 0.3], dtype=x.dtype)),
    "prelu of a secret slope": lambda x, y: F.prelu(x, y[0]),
    "hard": lambda x, y: F.hardswish(x) + F.hardsigmoid(y) + F.hardtanh(x, -0.5, 2) + F.relu6(y * 3),
    "mish": lambda x, y: F.mish(x),
    "softsign": lambda x, y: F.softsign(x),
    "shrunk": lambda x, y: F.softshrink(x) + F.threshold(y, 0.5, -1.0) + F.tanhshrink(x),
    "powers": lambda x, y: x**2 + x.pow(3) * 0.1 + y.pow(4) * 0.1 + x**1 + y**0,
    "high powers": lambda x, y: torch.stack([(x * 0.5) ** n for n in range(5, 9)]),
    "roots": lambda x, y: (x.abs() + 1) ** 0.5 + (y.abs() + 1) ** -0.5 + (x.abs() + 1) ** -1 + (y.abs() + 1) ** -2,
    "quotient": lambda x, y: x / (y + torch.sign(y) * 0.3),
    "reciprocal": lambda x, y: 1 / (x + x.sign() * 0.3) + torch.reciprocal(y.abs() + 1),
    "exp far below": lambda x, y: torch.exp(x - 40) + torch.exp(y),
    "expm1": lambda x, y: torch.expm1(x),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3) + torch.lerp(x, y, y),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.5) + torch.addcdiv(x, x, y.abs() + 1),
    "clamp": lambda x, y: x.clamp(max=0.5) + x.clamp(y.abs() - 1, y.abs()) + y.clamp(-1e9, 1.0),
    "square": lambda x, y: x.square() + y.sigmoid() * x.tanh(),
    "glu": lambda x, y: F.glu(torch.cat([x, y], 1)),
    "other bases": lambda x, y: torch.exp2(x) + 3**y + torch.log2(x.abs() + 0.1) + torch.log10(y.abs() + 0.1),
    "erfc": lambda x, y: torch.erfc(x) + torch.nan_to_num(y) + torch.isnan(x),
    # Along axes
    "log softmax": lambda x, y: F.log_softmax(x, 1) + F.log_softmax(y, 0),
    "logsumexp": lambda x, y: torch.logsumexp(x, 1) + torch.logsumexp(y, (0, 1)),
    "softmax by hand": lambda x, y: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
    "softmin": lambda x, y: F.softmin(x, 1),
    "extremes": lambda x, y: x.amin(1) + y.min() + x.max(1).values + y.min(1, keepdim=True)[0].squeeze(1),
    "variance": lambda x, y: x.var(1) + y.std(0).sum() + x.var(1, unbiased=False) + torch.var_mean(y, 1)[1],
    "cumsum": lambda x, y: x.cumsum(1) + y.cumsum(0),
    "norms": lambda x, y: x.norm(dim=1) + torch.linalg.norm(y, dim=1) + x.norm(1, 1) + x.norm(float("inf"), 1),
    "normalised": lambda x, y: F.normalize(x, dim=1),
    "cosine": lambda x, y: F.cosine_similarity(x, y, 1),
    "distances": lambda x, y: F.mse_loss(x, y) + F.l1_loss(x, y) + F.pairwise_distance(x, y),
    "losses": lambda x, y: (
        F.cross_entropy(x, torch.tensor([2, 0]))
        + F.binary_cross_entropy_with_logits(x, (y > 0).to(x.dtype))
        + F.nll_loss(x, torch.tensor([1, 1]), reduction="sum")
    ),
    "products": lambda x, y: x.prod(1) + y[:, :2].prod() + torch.std_mean(x, 1)[0],
    "rms norm by hand": lambda x, y: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * 2,
    "mean of integers": lambda x, y: (x > 0).float().mean(1) + (y > 0).sum(0).sum(),
    # Comparisons and choices
    "compared": lambda x, y: torch.stack([x > y, x < 0, x >= 0.25, y <= x, x == x, x != y]).float(),
    "as factors": lambda x, y: x * (x > 0) + (y > 0) * 2.5 + (y < x) * y,
    "chosen": lambda x, y: torch.where(x > y, x, y) + torch.where(x > 0, 1.5, -2.0) + torch.where(y > 0, x, 0),
    "chosen by public": lambda x, y: torch.where(MASK, x, y) + x.masked_fill(MASK, 1.5) + torch.where(MASK, 0, x),
    "masked": lambda x, y: x.masked_fill(y > 0, -1.0).masked_fill(~MASK, 2.0),
    "masked to minus infinity": lambda x, y: (
        F.softmax(x.masked_fill(MASK, float("-inf")), 1)
        + F.softmax(y + torch.where(MASK, 0.0, torch.finfo(torch.float32).min), 1)
    ),
    "logic": lambda x, y: torch.stack(
        [(x > 0) & (y > 0), (x > 0) | (y > 0), (x > 0) ^ (y > 0), ~(x > 0), (x > 0) & MASK, (x > 0) | MASK]
    ).float(),
    "any and all": lambda x, y: torch.stack([(x > 0).any(1), (x > -9).all(1), (y > 9).any(1)]).float(),
    "sign": lambda x, y: x.sign() * 2 + torch.sign(y),
    # Rearranged
    "triangles": lambda x, y: x.tril() + y.triu(1) + torch.triu(torch.ones(3, 3), -1)[:2].to(x.dtype) * x,
    "turned first": lambda x, y: (
        torch.lerp(x.t(), y.t(), 0.5) + F.glu(torch.cat([x, y]).t(), 1)[:, :1] + torch.addr(x.t(), x[0], y[:, 0])
    ),
    "moved": lambda x, y: x.roll(1, 1) + y.flip(0) + x.roll(2) + torch.rot90(y, 2),
    "repeated": lambda x, y: x.repeat(2, 1) + y.repeat_interleave(2, 0) + x.tile(2, 1),
    "repeated unevenly": lambda x, y: x.repeat_interleave(torch.tensor([1, 0, 2]), 1),
    "selected": lambda x, y: x.index_select(1, AT[0, :2]) + y.narrow(1, 1, 2) + x.take_along_dim(AT, 1)[:, :2],
    "gathered": lambda x, y: x.gather(1, AT) + y.gather(0, AT.clamp(max=1)),
    "scattered": lambda x, y: (
        x.scatter(1, AT[:, :1], y) + x.scatter_add(1, AT, y) + y.index_add(1, torch.tensor([0, 0]), x[:, :2])
    ),
    "index put": lambda x, y: x.index_put((torch.tensor([0, 1]), torch.tensor([2, 0])), y[0, :2]),
    "index copy": lambda x, y: x.index_copy(1, AT[0, 1:], y[:, :2]) + x.index_fill(1, torch.tensor([2]), 0.5),
    "by a mask": lambda x, y: x[MASK] * 2 + y[MASK],
    "chunks": lambda x, y: torch.cat([*x.chunk(2, 1), *y.tensor_split(2, 1)], 1) + torch.hstack([x, y]),
    "stacked": lambda x, y: torch.vstack([x, y]) + torch.dstack([x, y]).reshape(4, 3),
    "einsum": lambda x, y: torch.einsum("ij,kj->ik", x, y) + torch.einsum("ij,ij->i", x, y),
    "outer": lambda x, y: torch.outer(x[0], y[0]) + torch.kron(x[:1], y[0, :, None]),
    "einsum of public": lambda x, y: torch.einsum("bi,ij->bj", x, EYE.to(x.dtype)),
    "tensordot": lambda x, y: torch.tensordot(x, y, ([1], [1])) + torch.inner(x, y),
    "addmm": lambda x, y: torch.addmm(x[:, :2], x, y.t(), beta=0.5, alpha=2) + torch.addmv(x[:, 0], x, y[0])[:, None],
    "padded": lambda x, y: F.pad(x[None], (1, 1), mode="reflect") + F.pad(y[None], (1, 1), mode="replicate"),
    "padded around": lambda x, y: F.pad(x[None], (1, 1), mode="circular") + F.pad(y, (2, 0))[None] + F.pad(x, (-1, 3)),
    "movedim": lambda x, y: x.movedim(0, 1) @ y + x.swapaxes(0, 1).unflatten(0, (3, 1)).flatten(1) @ y,
    "meshed": lambda x, y: torch.stack(torch.meshgrid(x[0], y[0], indexing="ij")).sum(0),
    "diagonals": lambda x, y: (x @ y.T).diagonal() + torch.trace(x @ y.T) + torch.diag(x[:, :2]),
    "unfolded": lambda x, y: x.unfold(1, 2, 1).sum(-1) + y.diff(dim=1),
    "like": lambda x, y: torch.full_like(x, 0.5) + x.new_zeros(2, 3) + y.new_ones(3) + torch.zeros_like(y),
    "bilinear": lambda x, y: F.bilinear(x, y, torch.arange(18).reshape(2, 3, 3).to(x.dtype) / 18),
}
SIDE = (1, 2, 5, 6)
IMAGES = {
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max pool apart": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "max pool of sequences": lambda x: F.max_pool1d(x[0], 3, 2, 1, ceil_mode=True),
    "max pool in three dimensions": lambda x: F.max_pool3d(x[None], (1, 2, 2)),
    "max pool of wide products": lambda x: F.max_pool2d(x * x * 0.5 - 4, 3, 2, 1) + F.max_pool2d(F.elu(x), 3, 2, 1),
    "max pool of leaky": lambda x: F.max_pool2d(F.leaky_relu(x), 3, 2, 1) + F.max_pool2d(F.hardswish(x), 3, 2, 1),
    "max pool of wide sequences": lambda x: F.max_pool1d(F.elu(x[0]), 3, 1, 1),
    "max pool far below": lambda x: F.max_pool3d(x[None] - 2e4, 3, 1, 1) + 2e4,
    "max pool far below, ceil mode": lambda x: F.max_pool2d(x - 2e4, 3, 2, 1, ceil_mode=True) + 2e4,
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average pool counted": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average pool divided": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "average pool of sequences": lambda x: F.avg_pool1d(x[0], 2, 2, 1, count_include_pad=False),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "adaptive up": lambda x: F.adaptive_avg_pool2d(x, (7, 7)),
    "adaptive of sequences": lambda x: F.adaptive_avg_pool1d(x[0], 4),
    "adaptive max": lambda x: F.adaptive_max_pool2d(x, (3, 4)),
    "adaptive max of sequences": lambda x: F.adaptive_max_pool1d(x[0], 1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest to a size": lambda x: F.interpolate(x, size=(7, 4)),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear to a size": lambda x: F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "linear": lambda x: F.interpolate(x[0], scale_factor=1.5, mode="linear"),
    "shuffled": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2), 2),
    "channels shuffled": lambda x: F.channel_shuffle(x.repeat(1, 2, 1, 1), 2),
    "reflected": lambda x: F.pad(x, (2, 1, 1, 2), mode="reflect") + F.pad(x, (2, 1, 1, 2), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"),
    "unfolded": lambda x: F.unfold(x, 3, padding=1),
    "group norm": lambda x: F.group_norm(x, 2) + F.group_norm(x, 1, torch.tensor([1.5, 2]).to(x.dtype)),
    "instance norm": lambda x: F.instance_norm(x) + F.instance_norm(x[..., 0])[..., None],
    "local response norm": lambda x: F.local_response_norm(x, 2),
    "transposed": lambda x: F.conv_transpose2d(x, torch.ones(2, 1, 2, 2).to(x.dtype) / 4, stride=2),
    "depthwise": lambda x: F.conv2d(x, torch.ones(2, 1, 3, 3).to(x.dtype) / 9, groups=2, padding="same"),
}


@pytest.fixture(scope="module")
def outcomes():
    torch.manual_seed(3)
    x, y, image = (torch.randn(2, 3) * 1.5).clamp(-3, 3), (torch.randn(2, 3) * 1.5).clamp(-3, 3), torch.randn(SIDE)
    table = {("any", name): (function, (x, y)) for name, function in TABLE.items()}
    table |= {("image", name): (function, (image,)) for name, function in IMAGES.items()}
    return table, on_secrets(table)


CASES = [*(("any", name) for name in TABLE), *(("image", name) for name in IMAGES)]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_it_computes_what_it_computes_in_the_clear(case, outcomes):
    table, found = outcomes
    got = found[case]
    if isinstance(got, Exception):
        raise got
    for one, wanted in zip(got, in_the_clear(*table[case]), strict=True):
        assert one.shape == wanted.shape
        assert (one.double() - wanted).abs().max() < CLOSE * max(1, wanted.abs().max() / 4)
