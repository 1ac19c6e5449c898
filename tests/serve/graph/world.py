"""Small models of every shape, and pieces run in turn against the whole."""

import itertools

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from strongroom.serve.graph import stage_model
from strongroom.serve.runtime import NOT_IN_PARTS
from strongroom.serve.stage import Stage

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def info(name, shape=("N", 8), kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def weight(name, *shape, seed=0, kind=np.float32):
    values = np.random.default_rng(seed).standard_normal(shape).astype(kind) / 3
    return onnx.numpy_helper.from_array(np.asarray(values), name)


def constant(name, values, kind=np.int64):
    return onnx.numpy_helper.from_array(np.asarray(values, kind), name)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def model(nodes, inputs, outputs, weights=(), *, opset=17, ir_version=9, **more):
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(weights))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **more)
    made.ir_version = ir_version
    return made


def run(proto, inputs, *, without=()):
    """Outputs by name."""
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(
        data, options, providers=["CPUExecutionProvider"], disabled_optimizers=without
    )
    names = [each.name for each in session.get_outputs()]
    feeds = {each.name: inputs[each.name] for each in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def as_stage(proto, inputs):
    """As the service runs it; `run_stages` does the same with less ado."""
    return Stage.load(proto.SerializeToString(), name="part", threads=1, part=True).infer(inputs)


def as_part(proto, inputs):
    return run(proto, inputs, without=NOT_IN_PARTS)


def run_stages(chain, cuts, inputs, *, run_one=as_part):
    """What the stages between these cuts give, in turn; each gets what crosses to it and nothing else."""
    alive = {tensor.name: inputs[tensor.name] for tensor in chain.frontier(0)}
    for start, end in itertools.pairwise(cuts):
        proto = stage_model(chain, start, end)
        assert len(proto.graph.input) <= len(alive)
        given = run_one(proto, {each.name: alive[each.name] for each in proto.graph.input})
        alive = {tensor.name: alive[tensor.name] for tensor in chain.passed(start, end)} | given
        assert set(alive) == {tensor.name for tensor in chain.frontier(end)}
        for tensor in chain.frontier(end):
            sizes = alive[tensor.name].shape
            assert len(sizes) == len(tensor.shape)
            assert all(size == said for size, said in zip(sizes, tensor.shape, strict=True) if isinstance(said, int))
    return alive


def assert_same(wanted, got, *, within=1e-5):
    assert set(wanted) == set(got)
    for name, array in wanted.items():
        assert array.dtype == got[name].dtype
        assert array.shape == got[name].shape
        largest = np.abs(array.astype(np.float64)).max(initial=0) or 1
        apart = np.abs(array.astype(np.float64) - got[name].astype(np.float64)).max(initial=0)
        assert apart <= within * largest, name


def ones(**shapes):
    random = np.random.default_rng(7)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def residual():
    nodes = [
        node("Conv", "x w1", "a", pads=[1, 1, 1, 1]), node("Relu", "a", "b"),
        node("Conv", "b w2", "c", pads=[1, 1, 1, 1]),
        node("Add", "c x", "d"), node("Relu", "d", "e"), node("GlobalAveragePool", "e", "f"), node("Flatten", "f", "g"),
        node("Gemm", "g w3 b3", "y"),
    ]  # fmt: skip
    weights = [weight("w1", 4, 4, 3, 3), weight("w2", 4, 4, 3, 3, seed=1), weight("w3", 4, 5), weight("b3", 5)]
    return model(nodes, [info("x", ("N", 4, 6, 6))], [info("y", ("N", 5))], weights), ones(x=(2, 4, 6, 6))


def dense():
    nodes, weights, name, channels = [], [], "x", 4
    for layer in range(4):
        nodes += [
            node("Conv", f"{name} w{layer}", f"c{layer}", pads=[1, 1, 1, 1]),
            node("Relu", f"c{layer}", f"r{layer}"),
        ]
        nodes.append(node("Concat", f"{name} r{layer}", f"k{layer}", axis=1))
        weights.append(weight(f"w{layer}", 4, channels, 3, 3, seed=layer))
        name, channels = f"k{layer}", channels + 4
    return model(nodes, [info("x", ("N", 4, 6, 6))], [info(name, ("N", 20, 6, 6))], weights), ones(x=(1, 4, 6, 6))


def inception():
    nodes, weights = [], []
    for branch, size in enumerate((1, 3, 5)):
        pads = [size // 2] * 4
        nodes += [node("Conv", f"x w{branch}", f"c{branch}", pads=pads), node("Relu", f"c{branch}", f"r{branch}")]
        weights.append(weight(f"w{branch}", 6, 4, size, size, seed=branch))
    nodes += [
        node("MaxPool", "x", "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Concat", "r0 r1 r2 p", "y", axis=1),
    ]
    return model(nodes, [info("x", ("N", 4, 8, 8))], [info("y", ("N", 22, 8, 8))], weights), ones(x=(1, 4, 8, 8))


def transformer():
    """One block of attention and two layers, with a mask that is used at both ends and shapes computed on the way."""
    nodes = [
        node("Shape", "x", "s"), node("Gather", "s zero", "n", axis=0), node("Unsqueeze", "n axis", "n1"),
        node("Concat", "n1 rest", "heads", axis=0),
        *(node("MatMul", f"x w{k}", f"{k}0") for k in "qkv"), *(node("Reshape", f"{k}0 heads", f"{k}1") for k in "qkv"),
        node("Transpose", "q1", "q2", perm=[0, 2, 1, 3]), node("Transpose", "k1", "k2", perm=[0, 2, 3, 1]),
        node("Transpose", "v1", "v2", perm=[0, 2, 1, 3]), node("MatMul", "q2 k2", "a"), node("Add", "a mask", "am"),
        node("Softmax", "am", "p", axis=-1), node("MatMul", "p v2", "o"),
        node("Transpose", "o", "o1", perm=[0, 2, 1, 3]), node("Shape", "x", "s2"), node("Reshape", "o1 s2", "o2"),
        node("MatMul", "o2 wo", "o3"), node("Add", "o3 x", "r"),
        node("MatMul", "r wf", "f"), node("Relu", "f", "g"), node("MatMul", "g wg", "h"), node("Add", "h r", "y"),
    ]  # fmt: skip
    weights = [
        *(weight(f"w{k}", 8, 8, seed=n) for n, k in enumerate("qkvo")), weight("wf", 8, 32), weight("wg", 32, 8),
        constant("zero", 0), constant("axis", [0]), constant("rest", [-1, 2, 4]),
    ]  # fmt: skip
    inputs = [info("x", ("N", "T", 8)), info("mask", ("T", "T"))]
    return model(nodes, inputs, [info("y", ("N", "T", 8))], weights), ones(x=(2, 5, 8), mask=(5, 5))


def recurrent():
    """An LSTM whose optional operands are empty and that gives its last state too."""
    nodes = [node("Transpose", "x", "t", perm=[1, 0, 2])]
    nodes.append(helper.make_node("LSTM", ["t", "w", "r", "b", "", "h0"], ["s", "h"], hidden_size=4))
    nodes += [node("Squeeze", "s axis", "s1"), node("Add", "h zero", "last"), node("Relu", "s1", "y")]
    weights = [weight("w", 1, 16, 3), weight("r", 1, 16, 4), weight("b", 1, 32), constant("axis", [1])]
    weights += [weight("h0", 1, 2, 4), constant("zero", 0, np.float32)]
    outputs = [info("y", ("T", 2, 4)), info("last", (1, 2, 4))]
    return model(nodes, [info("x", (2, "T", 3))], outputs, weights), ones(x=(2, 6, 3))


def branching():
    """If: one branch takes a weight and a tensor from outside, one another tensor from further up."""

    def graph(name, *nodes):
        return helper.make_graph(list(nodes), name, [], [info("out")])

    then = graph("then", node("Mul", "b w", "m"), node("Identity", "m", "out"))
    other = graph("else", node("Sub", "a b", "m"), node("Identity", "m", "out"))
    nodes = [
        node("Relu", "x", "a"), node("Exp", "a", "b"), node("ReduceSum", "x", "s", keepdims=0),
        node("Greater", "s zero", "c"),
        node("If", "c", "d", then_branch=then, else_branch=other), node("MatMul", "d v", "y"),
    ]  # fmt: skip
    weights = [weight("w", 8), weight("v", 8, 3), constant("zero", 0, np.float32)]
    return model(nodes, [info("x")], [info("y", ("N", 3))], weights), ones(x=(2, 8))


def looping():
    body = helper.make_graph(
        [node("Mul", "state w", "m"), node("Add", "m a", "next"), node("Identity", "on", "still")],
        "body", [info("i", (), INT64), info("on", (), BOOL), info("state")], [info("still", (), BOOL), info("next")],
    )  # fmt: skip
    nodes = [node("Relu", "x", "a"), node("Loop", "three yes x", "d", body=body), node("Add", "d a", "y")]
    weights = [weight("w", 8), constant("three", 3), constant("yes", True, np.bool_)]
    return model(nodes, [info("x")], [info("y")], weights), ones(x=(2, 8))


def tied():
    """One table at both ends, turned around at the second."""
    nodes = [
        node("Gather", "table ids", "e"), node("MatMul", "e w", "h"), node("Relu", "h", "r"),
        node("Transpose", "table", "turned", perm=[1, 0]), node("MatMul", "r turned", "y"),
    ]  # fmt: skip
    weights = [weight("table", 3000, 8), weight("w", 8, 8, seed=1)]
    inputs = {"ids": np.array([[1, 2, 2999]], np.int64)}
    return model(nodes, [info("ids", ("N", "T"), INT64)], [info("y", ("N", "T", 3000))], weights), inputs


def odd():
    """Outputs that are inputs, weights, and needed early; numbers without a shape; and what nothing needs."""
    nodes = [
        node("Relu", "x", "early"), node("Exp", "early", "b"),
        node("Mul", "b half", "c"), node("ReduceSum", "c", "total", keepdims=0), node("Sqrt", "total", "d"),
        node("Tanh", "x", "unneeded"), node("Div", "c d", "y"),
        helper.make_node("Clip", ["y", "", "half"], ["z"]),
    ]  # fmt: skip
    weights = [constant("half", 0.5, np.float32), weight("answer", 8), weight("unused", 1000)]
    outputs = [info(name) for name in ("x", "early", "y", "z")] + [info("total", ()), info("answer", (8,))]
    return model(nodes, [info("x"), info("ignored")], outputs, weights), ones(x=(2, 8), ignored=(2, 8))


def sequence():
    nodes = [
        node("Relu", "x", "a"), node("SplitToSequence", "a", "s", axis=0), node("Exp", "a", "b"),
        node("ConcatFromSequence", "s", "c", axis=0), node("Add", "b c", "d"), node("MatMul", "d w", "y"),
    ]  # fmt: skip
    return model(nodes, [info("x")], [info("y", ("N", 3))], [weight("w", 8, 3)]), ones(x=(2, 8))


ALL = {
    each.__name__: each
    for each in (residual, dense, inception, transformer, recurrent, branching, looping, tied, odd, sequence)
}
