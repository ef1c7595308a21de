"""The structure of a pickle, read without running anything: a tensor becomes a description of itself.

`torch.load(weights_only=True)` runs no foreign code either, but it builds every tensor on the way, so that a file of a
kilobyte can ask for gigabytes. Here the opcodes that Python's own `pickletools` decodes are followed on a stack of
plain values. Classes are never looked up: those that checkpoints consist of are known by name, any other is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Bytes of a pickle. Its values take up to 70 times that in memory, and a checkpoint's takes a tenth of it.
MAX_PICKLE_BYTES = 1 << 20

# Elements of storages by their class; UntypedStorage's are bytes.
STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "UntypedStorage": "uint8",
}

# Classes and functions by what stands for them: modules keep their attributes, settings are kept as an empty value.
_MODULE_PREFIXES = (
    "torch.nn.modules.",
    "torch.nn.parallel.",
    "torchvision.models.",
    "torchvision.ops.misc.",
    "fer_train.networks.",
)
_MODULES = frozenset(
    (
        "__main__.FaceExpressionModel",
        "NNmodel.face_expression_model.FaceExpressionModel",
        "face_expression_model.FaceExpressionModel",
        "torch.optim.swa_utils.AveragedModel",
        "torch._dynamo.eval_frame.OptimizedModule",
    )
)
_SETTINGS = frozenset(
    (
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.frozenset",
        "builtins.range",
        "builtins.set",
        "builtins.slice",
        "collections.Counter",
        "collections.defaultdict",
        "collections.deque",
        "datetime.date",
        "datetime.datetime",
        "datetime.timedelta",
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "numpy.ndarray",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "torch.Generator",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch.serialization._get_layout",
    )
)
# Functions that rebuild tensors of other kinds, and what to call these.
_OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor subclass",
    "torch._tensor._rebuild_from_type_v2": "a tensor subclass",
}


class RefusedPickleError(ValueError):
    """The pickle is damaged, too large, or names a class that no checkpoint needs."""


class ForeignClassError(RefusedPickleError):
    """The pickle names a class or function that no checkpoint needs."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it asks for {name}")
        self.name = name


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageReference:
    """Values in the file that tensors are views of."""

    key: str
    dtype: str  # of its elements, such as "float32"
    elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor in the file. `refusal` says why its values cannot be read, "" for an ordinary one."""

    storage: StorageReference | None = None
    dtype: str = ""
    offset: int = 0  # in elements
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    refusal: str = ""


@dataclass(slots=True, eq=False)
class StoredModule:
    """A pickled `nn.Module`: its attributes and no code."""

    attributes: dict[Any, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Ignored:
    """A value that no weights are read from."""


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


class _Mark:
    pass


_MARK = _Mark()
_Stack = list[Any]


def read_pickle(content: Any) -> Any:
    """The values of a pickle: dicts, lists, tuples, numbers, texts, `StoredTensor`, `StoredModule` and `Ignored`.

    Values may hold themselves, as in any pickle.

    Args:
        content: bytes, or an open binary file that is read to the pickle's end.

    Raises:
        ForeignClassError: it names a class that no checkpoint needs.
        RefusedPickleError: it is damaged or larger than MAX_PICKLE_BYTES.
    """
    if isinstance(content, bytes) and len(content) > MAX_PICKLE_BYTES:
        raise RefusedPickleError(f"its structure takes {len(content):,} bytes, more than {MAX_PICKLE_BYTES:,}")
    machine = _Machine()
    start = 0 if isinstance(content, bytes) else content.tell()
    try:
        for opcode, argument, position in pickletools.genops(content):
            if position is not None and position - start > MAX_PICKLE_BYTES:
                raise RefusedPickleError(f"its structure takes more than {MAX_PICKLE_BYTES:,} bytes")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except RefusedPickleError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, EOFError) as error:
        raise RefusedPickleError(f"its structure is damaged ({type(error).__name__})") from error
    raise RefusedPickleError("its structure has no end")


class _Machine:
    """The stack and the memo that opcodes work on."""

    def __init__(self) -> None:
        self._stack: _Stack = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise RefusedPickleError("its structure is damaged (a mark for a value)")
        return value

    def step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if argument >= 1 << 32:
                raise RefusedPickleError("its structure is damaged (a number of a value)")
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "LIST":
            stack.append(self._marked())
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack.append(tuple([self.pop() for _ in range(count)][::-1]))
        elif name == "DICT":
            values = self._marked()
            stack.append({})
            self._set_items(values)
        elif name == "APPEND":
            value = self.pop()
            self._append([value])
        elif name in ("APPENDS", "ADDITEMS"):
            self._append(self._marked())
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self._set_items([key, value])
        elif name == "SETITEMS":
            self._set_items(self._marked())
        elif name == "FROZENSET":
            self._marked()
            stack.append(Ignored())
        elif name == "GLOBAL":
            stack.append(_known_global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            stack.append(_known_global(str(module), str(attribute)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self.pop(), self.pop()
            stack.append(_call(function, arguments))
        elif name == "NEWOBJ_EX":
            _, arguments, function = self.pop(), self.pop(), self.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            state = self.pop()
            if isinstance(stack[-1], StoredModule) and isinstance(state, dict):
                stack[-1].attributes.update(state)
        elif name == "BINPERSID":
            stack.append(_storage(self.pop()))
        else:
            raise RefusedPickleError(f"its structure uses {name}, which no checkpoint needs")

    def _marked(self) -> _Stack:
        """The values above the last mark, taken off the stack with it."""
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                values = stack[index + 1 :]
                del stack[index:]
                return values
        raise RefusedPickleError("its structure is damaged (no mark)")

    def _append(self, values: _Stack) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(values)

    def _set_items(self, values: _Stack) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                # Weights have names. The hash of nested tuples can take years, and large numbers can be made to
                # collide in a dict.
                if isinstance(key, str) or (isinstance(key, int) and 0 <= key < 1 << 32):
                    target[key] = value


_VALUES = frozenset(
    """
    NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING
    SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8
    """.split()  # noqa: SIM905 - a list of a line each would fill a page
)
_NEW: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": Ignored,
}


def _known_global(module: str, attribute: str) -> _Global:
    name = f"{module.replace('__builtin__', 'builtins')}.{attribute}"
    is_dtype = module == "torch" and attribute in _DTYPES
    is_storage = module in ("torch", "torch.storage") and attribute in STORAGE_DTYPES
    is_module = name in _MODULES or (name.startswith(_MODULE_PREFIXES) and attribute.isidentifier())
    if is_dtype or is_storage or is_module or name in _SETTINGS or name in _REBUILD or name in _OTHER_TENSORS:
        return _Global(name)
    if name in ("collections.OrderedDict", "torch.per_tensor_affine", "torch.per_channel_affine"):
        return _Global(name)
    raise ForeignClassError(name)


def _call(function: Any, arguments: Any) -> Any:
    """The stored value that a call stands for; no class or function of the file is called."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        return Ignored()
    name = function.name
    if name == "collections.OrderedDict":
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        return {pair[0]: pair[1] for pair in pairs if isinstance(pair, (list, tuple)) and isinstance(pair[0], str)}
    if name in _REBUILD:
        return _REBUILD[name](*arguments)
    if name in _OTHER_TENSORS:
        return StoredTensor(refusal=_OTHER_TENSORS[name])
    if name in _MODULES or name.startswith(_MODULE_PREFIXES):
        return StoredModule()
    return Ignored()


def _storage(identity: Any) -> StorageReference:
    kind, storage_class, key, _, elements = identity[:5]
    name = storage_class.name.rpartition(".")[2]
    if kind != "storage" or not isinstance(key, (str, int)) or name not in STORAGE_DTYPES:
        raise RefusedPickleError("its structure is damaged (a reference to no storage)")
    if len(identity) > 5 and identity[5] is not None:
        raise RefusedPickleError("it is of a PyTorch before 1.0 (storages that are views)")
    return StorageReference(key=str(key), dtype=STORAGE_DTYPES[name], elements=_whole(elements))


def _whole(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 48:
        raise RefusedPickleError("a size or stride in it is invalid")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 16:
        raise RefusedPickleError("the shape of a tensor in it is invalid")
    return tuple(_whole(value) for value in values)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    return _typed_tensor(storage, offset, shape, strides, dtype=storage.dtype)


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    return _typed_tensor(storage, offset, shape, strides, dtype=rest[2].name.removeprefix("torch."))


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *, dtype: str) -> StoredTensor:
    if not isinstance(storage, StorageReference):
        raise RefusedPickleError("a tensor in it has no storage")
    sizes, steps = _sizes(shape), _sizes(strides)
    if len(sizes) != len(steps):
        raise RefusedPickleError("a tensor in it has another number of strides than of sizes")
    return StoredTensor(storage=storage, dtype=dtype, offset=_whole(offset), shape=sizes, strides=steps)


def _parameter(data: Any, *_: Any) -> Any:
    return data


_REBUILD: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_DTYPES = frozenset(
    """
    float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64
    complex128 complex32 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu qint8
    quint8 qint32 strided sparse_coo sparse_csr
    """.split()  # noqa: SIM905 - a list of a line each would fill a page
)
