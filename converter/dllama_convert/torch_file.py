"""Reads where the tensors lie in a file of torch.save (the zip form, PyTorch 1.6 and later), without PyTorch.

The zip holds a pickle, which names each tensor's storage, shape and strides, and one uncompressed member a storage.
A pickle is a program: this one may call nothing but the few functions that state dictionaries are made of."""

import collections
import dataclasses
import math
import pathlib
import pickle
import struct
import zipfile

from . import ConversionError

_DTYPES = {"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2)}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Row-major values from byte `offset` of a file. `dtype`: F32, F16, BF16, or another, which nobody can read."""

    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclasses.dataclass(frozen=True)
class _StorageType:
    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: str
    item_bytes: int
    values: int
    offset: int


def read_torch(path: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of a state dictionary. Raises ConversionError if the file is anything else."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ConversionError(f"{path}: not a file of torch.save: it has no data.pkl")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise ConversionError(f"{path}: is not little-endian")
            with archive.open(pickles[0]) as data:
                state = _StateUnpickler(data, path, archive, file, root).load()
    except zipfile.BadZipFile as error:
        reason = "not a file of torch.save since PyTorch 1.6, or truncated"
        raise ConversionError(f"{path}: {reason}") from error
    except (ConversionError, OSError):
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ConversionError(f"{path}: its pickle is damaged: {error!r}") from error
    if not isinstance(state, dict):
        raise ConversionError(f"{path}: holds a {type(state).__name__}, not tensors by name")
    for name, tensor in state.items():
        if not isinstance(tensor, StoredTensor):
            raise ConversionError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor")
    return dict(state)


class _StateUnpickler(pickle.Unpickler):
    def __init__(self, data, path: pathlib.Path, archive: zipfile.ZipFile, file, root: str):
        super().__init__(data)
        self._path, self._archive, self._file, self._root = path, archive, file, root

    def find_class(self, module: str, name: str):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name.endswith("Storage"):
            return _StorageType(name)
        raise ConversionError(f"{self._path}: holds {module}.{name}: only tensors by name are read")

    def persistent_load(self, pid) -> _Storage:
        """("storage", type, member, device, number of values)"""
        _, kind, member, _, values = pid
        info = self._archive.getinfo(f"{self._root}data/{member}")
        dtype, item_bytes = _DTYPES.get(kind.name, (kind.name.removesuffix("Storage"), 1))
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < values * item_bytes:
            raise ConversionError(f"{self._path}: member {member} is compressed or too short")
        # The member's own header says where its bytes begin: lengths of name and extra field stand at 26.
        self._file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", self._file.read(4))
        return _Storage(dtype, item_bytes, values, info.header_offset + 30 + name_bytes + extra_bytes)

    def _tensor(self, storage: _Storage, first: int, shape: tuple, strides: tuple, *_) -> StoredTensor:
        expected = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        if any(n > 1 and stride != row for n, stride, row in zip(shape, strides, expected, strict=True)):
            raise ConversionError(f"{self._path}: a tensor of shape {list(shape)} is not stored row by row")
        if first < 0 or min(shape, default=0) < 0 or first + math.prod(shape) > storage.values:
            raise ConversionError(f"{self._path}: a tensor of shape {list(shape)} is larger than its storage")
        return StoredTensor(self._path, storage.dtype, tuple(shape), storage.offset + first * storage.item_bytes)
