"""Reads where the tensors lie in a file of torch.save (the zip form, PyTorch 1.6 and later), without PyTorch.

The zip holds a pickle, which names each tensor's storage, shape and strides, and one uncompressed member a storage.
state_pickle.py runs it, with the few functions that state dictionaries are made of."""

import dataclasses
import math
import os
import pathlib
import struct
import zipfile

from . import ConversionError, state_pickle
from .files import open_regular
from .printing import shown

_DTYPES = {"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2)}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Row-major values from byte `offset` of a file. `dtype`: F32, F16, BF16, or another, which nobody can read."""

    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: str
    item_bytes: int
    values: int
    offset: int


def read_torch(path: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of a state dictionary. Raises ConversionError if the file is anything else."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ConversionError(f"{path}: not a file of torch.save: it has no data.pkl")
            root = pickles[0].removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in archive.namelist() and _member(path, archive, order, size) != b"little":
                raise ConversionError(f"{path}: is not little-endian")
            reader = _StateReader(path, archive, file, root)
            state = state_pickle.run(_member(path, archive, pickles[0], size), reader.call, reader.storage)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        reason = "not a file of torch.save since PyTorch 1.6, or truncated"
        raise ConversionError(f"{path}: {reason}") from error
    except (ConversionError, OSError):
        raise
    except state_pickle.PickleError as error:
        raise ConversionError(f"{path}: its pickle is damaged: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, struct.error, OverflowError) as error:
        raise ConversionError(f"{path}: its pickle is damaged: {shown(error)}") from error
    if not isinstance(state, dict):
        raise ConversionError(f"{path}: holds a {type(state).__name__}, not tensors by name")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise ConversionError(f"{path}: {shown(name)} is a {type(tensor).__name__}, not a tensor")
    return state


def _member(path: pathlib.Path, archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """A member's bytes, which lie in the zip as they are: never more than the file has."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > size:
        raise ConversionError(f"{path}: {name} is compressed, or larger than its file")
    return archive.read(info)


class _StateReader:
    """What the functions that a state dictionary calls mean."""

    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile, file, root: str):
        self._path, self._archive, self._file, self._root = path, archive, file, root

    def call(self, function: state_pickle.Name, arguments: tuple) -> object:
        if function == ("collections", "OrderedDict") and not arguments:
            return {}
        if function == ("torch._utils", "_rebuild_tensor_v2") and len(arguments) >= 4:
            return self._tensor(*arguments[:4])
        if function == ("torch._utils", "_rebuild_parameter") and arguments:
            return arguments[0]
        raise ConversionError(f"{self._path}: holds {shown('.'.join(function))[1:-1]}: only tensors by name are read")

    def storage(self, pid) -> _Storage:
        """("storage", type, member, device, number of values)"""
        _, kind, member, _, values = pid
        if not isinstance(kind, state_pickle.Name) or kind[0] != "torch" or type(values) is not int or values < 0:
            raise ConversionError(f"{self._path}: holds {shown(kind)}: only tensors by name are read")
        info = self._archive.getinfo(f"{self._root}data/{member}")
        dtype, item_bytes = _DTYPES.get(kind[1], (kind[1].removesuffix("Storage"), 1))
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < values * item_bytes:
            raise ConversionError(f"{self._path}: member {member} is compressed or too short")
        # The member's own header says where its bytes begin: lengths of name and extra field stand at 26.
        self._file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", self._file.read(4))
        return _Storage(dtype, item_bytes, values, info.header_offset + 30 + name_bytes + extra_bytes)

    def _tensor(self, storage: object, first: object, shape: object, strides: object) -> StoredTensor:
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise ConversionError(f"{self._path}: holds a tensor without a storage")
        if len(shape) > 8 or len(strides) != len(shape) or any(type(n) is not int for n in (first, *shape, *strides)):
            raise ConversionError(f"{self._path}: holds a tensor of shape {shown(shape)}")
        expected = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        if any(n > 1 and stride != row for n, stride, row in zip(shape, strides, expected, strict=True)):
            raise ConversionError(f"{self._path}: a tensor of shape {list(shape)} is not stored row by row")
        if first < 0 or min(shape, default=0) < 0 or first + math.prod(shape) > storage.values:
            raise ConversionError(f"{self._path}: a tensor of shape {list(shape)} is larger than its storage")
        return StoredTensor(self._path, storage.dtype, tuple(shape), storage.offset + first * storage.item_bytes)
