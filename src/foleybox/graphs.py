"""What an ONNX file of an instrument may contain, read without the onnx package (which the studio does not need).

A graph is a program. These checks leave out what could run without an end, read other files or run other code: `Loop` and
`If`, functions and operators of other packages, weights in other files, and random operators, since a sound depends on its
seed alone. `Scan` repeats over an axis of its input, so that it ends; it may not contain another. Memory and time of what
remains are limited while it runs (`studio/sessions.py`).

The numbers of the fields are those of onnx.proto3.
"""

from collections.abc import Iterator

MOST_NODES = 20_000
OPSETS = range(13, 27)
OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu Clip
    Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DFT DepthToSpace DequantizeLinear Div Einsum Elu Equal
    Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN LSTM LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean Min Mish Mod Mul Neg
    Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round STFT Scan
    ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
    Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905
)


def graph_problems(content: bytes) -> Iterator[str]:
    """Yield what is wrong with the content of an ONNX file, as the end of a sentence about it."""
    try:
        yield from _model_problems(memoryview(content))
    except (IndexError, ValueError):
        yield "is no ONNX file that can be read"


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a protobuf message: an int, or the bytes of a text, list or message.

    Raises IndexError or ValueError for bytes that are no message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
        elif kind in (1, 5):  # 64 and 32 bits
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise ValueError(length)
            yield number, message[at : at + length]
            at += length
        else:
            raise ValueError(kind)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 10 bytes")


def _messages(message: memoryview, *numbers: int) -> Iterator[memoryview]:
    return (value for number, value in _fields(message) if number in numbers and isinstance(value, memoryview))


def _text(message: memoryview, number: int) -> str:
    return bytes(next(_messages(message, number), b"")).decode()


def _model_problems(model: memoryview) -> Iterator[str]:
    names = {number for number, _ in _fields(model)}
    if names & {20, 25}:
        yield "contains functions or a training graph: expected operators alone"
    for opset in _messages(model, 8):
        domain, version = _text(opset, 1), next((value for number, value in _fields(opset) if number == 2), 0)
        if domain not in ("", "ai.onnx") or version not in OPSETS:
            yield (
                f"uses operators of {domain[:40] or 'ONNX'!a} in version {version}: expected ONNX's, versions "
                f"{OPSETS[0]} to {OPSETS[-1]}"
            )
    graphs = list(_messages(model, 7))
    if len(graphs) != 1:
        yield "contains no graph"
    nodes = 0
    for problem in (each for graph in graphs for each in _graph_problems(graph)):
        nodes += not problem
        if problem:
            yield problem
        if nodes > MOST_NODES:
            yield f"has more than {MOST_NODES:,} nodes"


def _graph_problems(graph: memoryview, inside: str = "") -> Iterator[str]:
    """Yield the problems of a graph, and "" for each node; `inside` is the operator that contains it."""
    for tensor in _messages(graph, 5):
        yield from _tensor_problems(tensor)
    for sparse in _messages(graph, 15):
        yield from _sparse_problems(sparse)
    for node in _messages(graph, 1):
        yield ""
        operator, domain = _text(node, 4), _text(node, 7)
        if operator not in OPERATORS or domain not in ("", "ai.onnx"):
            yield f"contains the operator {(domain + operator)[:40]!a}: expected one of those that foleybox/graphs.py lists"
        for attribute in _messages(node, 5):
            for tensor in _messages(attribute, 5, 10):
                yield from _tensor_problems(tensor)
            for sparse in _messages(attribute, 22, 23):
                yield from _sparse_problems(sparse)
            for body in _messages(attribute, 6, 11):
                if operator != "Scan" or inside:
                    yield f"contains a graph in {operator[:40]!a}{' in ' * bool(inside)}{inside}: expected one in Scan at most"
                else:
                    yield from _graph_problems(body, operator)


def _tensor_problems(tensor: memoryview) -> Iterator[str]:
    if any(number == 13 or (number == 14 and value) for number, value in _fields(tensor)):
        yield "has weights in another file, which its SHA-256 does not cover"


def _sparse_problems(sparse: memoryview) -> Iterator[str]:
    for tensor in _messages(sparse, 1, 2):
        yield from _tensor_problems(tensor)
