"""Opening files that others made: only regular ones, and never more of them than their own length."""

import os
import pathlib
import stat

from . import ConversionError


def open_regular(path: pathlib.Path):
    """The file for reading in binary. Raises ConversionError for a pipe, a device or a folder, which could block or
    never end, FileNotFoundError and other OSErrors as open()."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConversionError(f"{path}: is not a regular file")
    return open(descriptor, "rb", buffering=0)


def read_regular(path: pathlib.Path, limit: int) -> bytes:
    """The whole file. Raises ConversionError if it has more than `limit` bytes, else as open_regular()."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ConversionError(f"{path}: has {size} bytes, at most {limit} are read")
        return file.read(size)
