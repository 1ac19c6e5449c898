"""What of a `.pt2` file is given to torch, which writes Python of its names, evaluates its sizes and unpickles.

Only what is needed is taken over, into a new archive: members of known names, operators that compute and nothing else,
names that are names, expressions that are arithmetic. Whatever else a file has is refused, or left out where nothing
is lost without it: stack traces, other metadata, guards, example inputs, files beside the program.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from keyword import iskeyword
from typing import Any

import torch

from strongroom.errors import ModelFormatError
from strongroom.mpc.imports.graph import printable
from strongroom.mpc.tensor import operators
from strongroom.mpc.tensor.shared_tensor import APART, HANDLERS, VIEWS, WRITES

_REGISTERED = operators  # importing it is what makes operators known
MAX_FILE = 1 << 34
_MAX_TEXT = 1 << 26
_MAX_EXPRESSION = 1 << 12
_RESAVE = "save it again with torch.export.save, of a module whose parameters are ordinary tensors"
_PROGRAM = "models/model.json"
_CONFIGS = {"data/weights/model_weights_config.json", "data/constants/model_constants_config.json"}
_KEPT = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_(format|version)|byteorder", re.ASCII)
_LEFT_OUT = re.compile(r"extra/.*|\.data/.*|\.format_version|\.storage_alignment|version", re.ASCII | re.DOTALL)
_SAMPLES = "data/sample_inputs/model.pt"
_PAYLOAD = re.compile(r"(weight|tensor)_\d+", re.ASCII)

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)
_NAMED = {"name", "as_name", "user_input_name"}
_TABLES = {
    "tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values", "custom_obj_values",
}  # fmt: skip
_PATHS = {"parameter_name", "buffer_name", "tensor_constant_name", "fqn"}
# Arguments and specifications that are no data.
_CODE = {
    "as_operator", "as_graph", "as_custom_obj", "custom_obj", "custom_obj_name", "class_fqn", "token", "tokens",
    "as_string_to_argument",
}  # fmt: skip
_TREES = {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None}

_SYMBOL = re.compile(r"[su]\d+", re.ASCII)
_FUNCTIONS = {
    "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Max", "Min", "FloorDiv", "CeilDiv", "Mod", "PythonMod",
    "CleanDiv", "Equality", "Unequality", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "StrictLessThan", "LessThan",
    "StrictGreaterThan", "GreaterThan",
}  # fmt: skip
_SAID = {"positive", "nonnegative", "integer"}
_INFINITE = {"oo", "int_oo"}
_ARITHMETIC = (
    ast.Expression, ast.Load, ast.BinOp, ast.UnaryOp, ast.Compare, ast.keyword,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.USub, ast.UAdd,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip

_NUMBERS = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|truediv|pow|and_|or_|not_)"
    r"|torch\.sym_(int|float|max|min|not|sum)|math\.(ceil|floor|trunc)"
)
# Beside operators that secrets have: what torch makes those of, and what has to do with public values alone.
_MORE = {
    "__and__", "__or__", "__xor__", "_assert_async", "_assert_scalar", "_assert_tensor_metadata",
    "_native_batch_norm_legit_no_training", "_shape_as_tensor", "acos", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "alpha_dropout", "arange", "argsort", "asin", "asinh", "atan",
    "atan2", "atleast_1d", "atleast_2d", "batch_norm", "bilinear", "bitwise_left_shift", "bitwise_right_shift",
    "broadcast_tensors", "broadcast_to", "bucketize", "ceil", "ceil_", "chunk", "clip", "column_stack", "concat",
    "constant_pad_nd", "contiguous", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "convolution", "cos", "cos_", "cosh", "cosine_similarity", "count_nonzero",
    "cross_entropy_loss", "cudnn_batch_norm", "cumprod", "deg2rad", "detach", "diag", "diag_embed", "diff",
    "divide", "divide_", "dropout", "dropout_", "dstack", "einsum", "embedding_bag", "expand_as", "eye",
    "feature_dropout", "fix", "flatten", "fliplr", "flipud", "floor", "floor_", "floor_divide", "floor_divide_",
    "fmod", "frac", "full", "gather", "group_norm", "hstack", "huber_loss", "index_select", "inner", "isfinite",
    "isin", "item", "kron", "l1_loss", "layer_norm", "linalg_matmul", "linalg_norm", "linalg_vecdot", "linspace",
    "log_sigmoid", "log_softmax", "logaddexp", "masked_select", "matrix_power", "max_pool2d", "max_pool3d",
    "median", "meshgrid", "moveaxis", "movedim", "multiply", "multiply_", "narrow", "narrow_copy", "native_dropout",
    "negative", "nonzero", "normalize", "not_equal", "numpy_T", "ones", "outer", "pad", "pairwise_distance",
    "polar", "positive", "prelu", "rad2deg", "ravel", "relu6", "relu6_", "remainder", "repeat_interleave",
    "reshape", "reshape_as", "resolve_conj", "resolve_neg", "rms_norm", "round", "round_", "rrelu", "scalar_tensor",
    "searchsorted", "silu", "sin", "sin_", "sinh", "smooth_l1_loss", "softmax", "sort", "square", "square_",
    "subtract", "subtract_", "swapaxes", "swapdims", "sym_constrain_range", "sym_constrain_range_for_size",
    "sym_numel", "sym_size", "sym_stride", "take", "take_along_dim", "tan", "tensor_split", "tensordot", "tile",
    "to", "true_divide", "trunc", "trunc_", "type_as", "unflatten", "unsafe_chunk", "upsample_trilinear3d",
    "vander", "view_as", "vstack", "xlogy", "zeros",
}  # fmt: skip
# What is in memory before anything is written there is nobody's to see, and a random number is the world's to draw.
_NEVER = re.compile(r"(new_)?empty.*|set_.*|resize.*|.*rand.*|.*from_file.*|.*record.*|_print|copy_strided")


def safe_archive(archive: zipfile.ZipFile, name: str, size: int) -> io.BytesIO:
    """An archive of the same program which does nothing when it is loaded.

    Args:
        size: the file's.

    Raises:
        ModelFormatError: there is no such program in it.
    """
    members = archive.infolist()
    if sum(each.file_size for each in members) > min(size, MAX_FILE):
        raise ModelFormatError(f"model: {name} holds more than its {size} bytes, wanted an archive as torch saves it")
    made, taken = io.BytesIO(), set[str]()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as kept:
        for info in members:
            root, _, inner = info.filename.partition("/")
            if info.compress_type != zipfile.ZIP_STORED or root != members[0].filename.partition("/")[0]:
                raise ModelFormatError(f"model: {name} is no archive as torch saves it", hint=_RESAVE)
            if inner in taken:
                raise ModelFormatError(f"model: {name} has {printable(inner)!r} twice")
            taken.add(inner)
            if inner == _PROGRAM:
                data = json.dumps(_program(_parsed(archive, info, name), name)).encode()
            elif inner in _CONFIGS:
                data = json.dumps(_config(_parsed(archive, info, name), inner, name)).encode()
            elif _KEPT.fullmatch(inner):
                data = archive.read(info)
            elif inner == _SAMPLES:
                data = b""  # a pickle, and nothing is lost without it
            elif _LEFT_OUT.fullmatch(inner) and root != info.filename:
                continue
            else:
                what = "a pickled object" if "obj" in inner else "which holds code or is of no use here"
                raise ModelFormatError(f"model: {name} has {printable(inner or root)!r}, {what}", hint=_RESAVE)
            kept.writestr(f"program/{inner}", data)
        kept.writestr("program/.data/version", b"6\n")
    made.seek(0)
    return made


def _parsed(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> dict[str, Any]:
    if info.file_size > _MAX_TEXT:
        raise ModelFormatError(f"model: {printable(info.filename)!r} in {name} is over {_MAX_TEXT} bytes")
    try:
        value = json.loads(archive.read(info))
    except RecursionError:
        value = None
    if not isinstance(value, dict):
        raise ModelFormatError(f"model: {printable(info.filename)!r} in {name} is no description of a program")
    return value


def _config(value: dict[str, Any], inner: str, name: str) -> dict[str, Any]:
    """Where tensors lie in the archive, by their names."""
    for key, payload in value["config"].items():
        if payload.get("use_pickle") is not False:
            raise ModelFormatError(f"model: {name} has pickled tensors in {printable(inner)!r}", hint=_RESAVE)
        if not _PATH.fullmatch(key) or not _PAYLOAD.fullmatch(payload["path_name"]):
            raise _misnamed(name, key if _PAYLOAD.fullmatch(str(payload["path_name"])) else payload["path_name"])
        _require_sizes(payload, name)
    return value


def _program(value: dict[str, Any], name: str) -> dict[str, Any]:
    module = value["graph_module"]
    value["guards_code"] = []
    module["metadata"], module["treespec_namedtuple_fields"] = {}, {}
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}
        if not _is_operator(node["target"]):
            raise ModelFormatError(
                f"model: {name} calls {printable(str(node['target']))!r}, wanted operators of ATen that secrets have",
                hint="export the module in eval mode, with the operators that docs/explanation/mpc.md lists",
            )
    for symbol in value.get("range_constraints") or {}:
        if not _SYMBOL.fullmatch(symbol):
            raise ModelFormatError(f"model: {name} has a size {printable(symbol)!r}, wanted a symbol")
    for each in _dictionaries(value):
        if found := sorted(key for key in _CODE.intersection(each) if each[key]):
            raise ModelFormatError(f"model: {name} has a {found[0]}, which is no data")
        _require_names(each, name)
    for entry in module["module_call_graph"]:
        signature = entry.get("signature") or {}
        names = signature.get("forward_arg_names") or []
        if wrong := [each for each in names if not _is_name(each)]:
            raise _misnamed(name, wrong[0])
        for spec in ("in_spec", "out_spec"):
            if spec in signature:
                _require_tree(signature[spec], name)
    _require_sizes(value, name)
    return value


def _require_names(each: dict[str, Any], name: str) -> None:
    """Raise ModelFormatError if what a graph calls something, which torch writes into a program, is no name."""
    for key in _NAMED.intersection(each):
        if each[key] not in (None, "") and not _is_name(each[key]):
            raise _misnamed(name, each[key])
    for key in _TABLES.intersection(each):
        if wrong := [inner for inner in each[key] or {} if not _is_name(inner)]:
            raise _misnamed(name, wrong[0])
    for key in _PATHS.intersection(each):
        if each[key] not in (None, "") and not (isinstance(each[key], str) and _PATH.fullmatch(each[key])):
            raise _misnamed(name, each[key])


def _require_tree(text: str, name: str) -> None:
    """Raise ModelFormatError unless a structure is of torch's own containers, with names for keys."""
    try:
        version, root = json.loads(text)
    except (RecursionError, ValueError, TypeError):
        version, root = None, {}
    if version != 1:
        raise ModelFormatError(f"model: {name} has inputs or outputs of an unknown structure")
    waiting = [root]
    while waiting:
        each = waiting.pop()
        context = json.loads(each["context"]) if isinstance(each["context"], str) else each["context"]
        if each["type"] not in _TREES or not (context is None or isinstance(context, list)):
            raise ModelFormatError(
                f"model: {name} takes or gives a {printable(str(each['type']))}, wanted tuples, lists and dictionaries"
            )
        if wrong := [key for key in context or [] if type(key) is not int and not _is_name(key)]:
            raise _misnamed(name, wrong[0])
        waiting += each["children_spec"]


def _require_sizes(value: Any, name: str) -> None:
    for each in _dictionaries(value):
        if "expr_str" in each and not is_size(each["expr_str"]):
            raise ModelFormatError(
                f"model: {name} has a size {printable(str(each['expr_str']))!r}, wanted sums and products"
            )


def is_size(expression: Any) -> bool:
    """Whether an expression is made of sizes, numbers and arithmetic alone, and no number in it can be huge."""
    if not isinstance(expression, str) or len(expression) > _MAX_EXPRESSION:
        return False
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    calls: list[Any] = [each for each in ast.walk(tree) if _is_call(each)]
    symbols = {id(each.args[0]) for each in calls if each.func.id == "Symbol" and each.args}
    return all(_is_part(each, id(each) in symbols) for each in ast.walk(tree)) and _powers(tree) <= 4


def _is_call(each: Any) -> bool:
    return isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id in _FUNCTIONS


def _is_part(each: ast.AST, symbol: bool) -> bool:
    if isinstance(each, ast.Call):
        return _is_call(each)
    if isinstance(each, ast.keyword):
        return each.arg in _SAID
    if isinstance(each, ast.Name):
        return bool(_SYMBOL.fullmatch(each.id)) or each.id in _FUNCTIONS | _INFINITE
    if isinstance(each, ast.Constant):
        if isinstance(each.value, str):
            return symbol and bool(_SYMBOL.fullmatch(each.value))
        return isinstance(each.value, (bool, int, float)) and abs(each.value) < 1 << 63
    return isinstance(each, _ARITHMETIC)


def _powers(tree: ast.AST) -> int:
    """How many powers are within each other; as many as are too many, for one by what is no small number."""
    inner = max(map(_powers, ast.iter_child_nodes(tree)), default=0)
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Pow):
        exponent: ast.AST | None = tree.right
    elif _is_call(tree) and tree.func.id == "Pow":  # type: ignore[attr-defined]
        exponent = tree.args[1] if len(tree.args) == 2 else None  # type: ignore[attr-defined]
    else:
        return inner
    if _is_call(exponent) and exponent.func.id == "Integer" and len(exponent.args) == 1:  # type: ignore[union-attr]
        exponent = exponent.args[0]  # type: ignore[union-attr]
    if isinstance(exponent, ast.UnaryOp):
        exponent = exponent.operand
    small = isinstance(exponent, ast.Constant) and isinstance(exponent.value, int) and exponent.value <= 8
    return inner + (1 if small else 1 << 10)


def _is_operator(target: Any) -> bool:
    if not isinstance(target, str):
        return False
    if _NUMBERS.fullmatch(target):
        return True
    *where, base, overload = target.split(".") if target.count(".") == 4 else ("", "", "")
    return (
        where == ["torch", "ops", "aten"]
        and base in _operators()
        and not _NEVER.fullmatch(base)
        and isinstance(getattr(getattr(torch.ops.aten, base, None), overload, None), torch._ops.OpOverload)
    )


def _operators() -> set[str]:
    """The operators of ATen that secrets have, and those which these are made of."""
    found: Iterable[Any] = (*HANDLERS, *VIEWS, *WRITES, *APART)
    return _MORE | {each._schema.name.removeprefix("aten::") for each in found if hasattr(each, "_schema")}


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and bool(_NAME.fullmatch(text)) and not iskeyword(text)


def _misnamed(name: str, found: Any) -> ModelFormatError:
    return ModelFormatError(
        f"model: {name} calls something {printable(str(found))!r}, wanted letters, digits and underscores"
    )


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
