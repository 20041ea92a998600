"""The Hugging Face hub: what a repository holds, the headers of its weights, files fetched and checked.

huggingface_hub knows the hub's interface, the token (HF_TOKEN), the mirror (HF_ENDPOINT) and offline mode
(HF_HUB_OFFLINE). Files go through its http_get and not hf_hub_download, which no longer takes up a download that an
earlier process left behind."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from . import ConversionError
from .paths import below, printable

T = TypeVar("T")

# What a lost connection raises: the HTTP library below huggingface_hub is not the same in all its versions, so its base
# class is taken from huggingface_hub's own errors.
_CONNECTION_ERRORS = tuple(
    base for base in errors.HfHubHTTPError.__mro__[1:] if base.__name__ in ("HTTPError", "RequestException")
)

# Seconds before each further attempt. http_get goes on by itself where a connection broke, but not for ever.
_PAUSES = (0.5, 1, 2, 4, 8, 16, 32)
# Before anything was reached, a few are enough: more likely there is no network.
_FIRST_PAUSES = 3
# Times that a file may arrive damaged.
_DAMAGED = 3


class _Bounded(io.BufferedWriter):
    """The file at `path`, opened to append: refuses what goes beyond `limit` bytes, so that a mirror that sends without
    end does not fill the disk."""

    def __init__(self, path: pathlib.Path, limit: int):
        super().__init__(io.FileIO(path, "ab"))
        self._limit = limit

    def write(self, data) -> int:
        if self.tell() + len(data) > self._limit:
            raise ConversionError(f"{self.raw.name}: more arrives than the {self._limit} bytes of the hub's list")
        return super().write(data)


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    name: str
    size: int
    sha256: str | None  # of large files
    git_hash: str | None  # of small ones: SHA-1 of "blob <size>\\0" and the bytes

    def check(self, path: pathlib.Path) -> str | None:
        """What is wrong with the file at `path`, or None."""
        size = path.stat().st_size
        if size != self.size:
            return f"has {size} bytes, must have {self.size}"
        if self.sha256:
            digest, expected = hashlib.sha256(), self.sha256
        elif self.git_hash:
            digest, expected = hashlib.sha1(f"blob {size}\0".encode()), self.git_hash
        else:
            return None
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return (
            None if digest.hexdigest() == expected else f"is damaged: its hash is {digest.hexdigest()}, not {expected}"
        )


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    commit: str
    files: dict[str, RemoteFile]

    def tensors(self, file: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of each tensor of a safetensors file, from its header alone."""
        api = huggingface_hub.HfApi()
        header = _retried(self.name, lambda: api.parse_safetensors_file_metadata(self.name, file, revision=self.commit))
        return {name: (info.dtype, tuple(info.shape)) for name, info in header.tensors.items()}

    def read(self, file: str, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end` of a file, by themselves."""
        url = huggingface_hub.hf_hub_url(self.name, file, revision=self.commit)
        headers = build_hf_headers() | {"Range": f"bytes={begin}-{end - 1}"}

        def get() -> bytes:
            if constants.is_offline_mode():
                raise errors.OfflineModeIsEnabled("offline")
            answer = get_session().get(url, headers=headers)
            hf_raise_for_status(answer)
            if answer.status_code != 206 or len(answer.content) != end - begin:
                raise OSError(f"bytes {begin} to {end} were asked for, {len(answer.content)} came")
            return answer.content

        return _retried(f"{self.name}: {file}", get)

    def tensor_place(self, file: str, tensor: str) -> int:
        """Where a tensor of a safetensors file begins in it."""
        length = int.from_bytes(self.read(file, 0, 8), "little")
        header = json.loads(self.read(file, 8, 8 + length))
        return 8 + length + header[tensor]["data_offsets"][0]

    def fetch(self, file: RemoteFile, folder: pathlib.Path) -> pathlib.Path:
        """Brings the file into `folder`, takes up what is already there, and checks it. Raises ConversionError, also
        for a name that leaves the folder."""
        path = below(folder, file.name, deep=True)
        if path.exists():
            if file.check(path) is None:
                return path
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = below(folder, file.name + ".incomplete", deep=True)
        url = huggingface_hub.hf_hub_url(self.name, file.name, revision=self.commit)

        def download() -> None:
            have = part.stat().st_size if part.exists() else 0
            if have > file.size:
                part.unlink()
                have = 0
            with _Bounded(part, file.size) as out:
                http_get(url, out, resume_size=have, headers=build_hf_headers(), expected_size=file.size)

        for _ in range(_DAMAGED):
            _retried(f"{self.name}: {file.name}", download)
            problem = file.check(part)
            if problem is None:
                os.replace(part, path)
                return path
            part.unlink()  # whole, but not what it should be: nothing of it can be trusted
            print(printable(f"⚠️ {file.name} {problem}"), file=sys.stderr, flush=True)
        raise ConversionError(f"{self.name}: {file.name} came damaged {_DAMAGED} times; the last one {problem}")


def open_repository(name: str, revision: str | None = None) -> Repository:
    """What the hub's repository `name` (owner/name) holds at a branch, tag or commit."""
    api = huggingface_hub.HfApi()
    info = _retried(
        name, lambda: api.model_info(name, revision=revision, files_metadata=True), _PAUSES[:_FIRST_PAUSES]
    )
    files = {}
    for entry in info.siblings or []:
        sha256 = entry.lfs.sha256 if entry.lfs else None
        files[entry.rfilename] = RemoteFile(entry.rfilename, entry.size or 0, sha256, None if sha256 else entry.blob_id)
    return Repository(name, info.sha or "main", files)


def check_space(files: list[RemoteFile], folder: pathlib.Path, most: int | None = None) -> None:
    """Raises ConversionError if what is missing of the files does not fit on the disk, where they need `most` bytes at
    once (if given)."""
    missing = 0
    for file in files:
        path = below(folder, file.name, deep=True)
        here = (path, path.with_name(path.name + ".incomplete"))
        missing += max(0, file.size - max((path.stat().st_size for path in here if path.exists()), default=0))
    missing, free = missing if most is None else min(missing, most), shutil.disk_usage(folder).free
    if missing > free:
        raise ConversionError(f"{folder}: {missing / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free on this disk")


def _retried(what: str, action: Callable[[], T], pauses: tuple[float, ...] | None = None) -> T:
    """The result of `action`, tried again where that may help. Raises ConversionError."""
    for pause in (*(_PAUSES if pauses is None else pauses), None):
        try:
            return action()
        except errors.OfflineModeIsEnabled as error:
            raise ConversionError(f"{what}: not everything is here, and HF_HUB_OFFLINE is set") from error
        except errors.GatedRepoError as error:
            raise ConversionError(
                f"{what}: accept the licence on the model's page, then set HF_TOKEN to your access token"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ConversionError(f"{what}: there is no such repository, or it is private (set HF_TOKEN)") from error
        except (errors.RevisionNotFoundError, errors.EntryNotFoundError, errors.SafetensorsParsingError) as error:
            raise ConversionError(f"{what}: {_first_line(error)}") from error
        except (errors.HfHubHTTPError, OSError, *_CONNECTION_ERRORS) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if 400 <= status < 500 and status not in (408, 429):
                raise ConversionError(f"{what}: {_first_line(error)}") from error
            if pause is None:
                hint = "" if status else f"; {constants.ENDPOINT} is not reached (HF_ENDPOINT names a mirror)"
                raise ConversionError(f"{what}: {_first_line(error)}{hint}: run again to go on") from error
            print(printable(f"⚠️ {what}: {_first_line(error)}: trying again"), file=sys.stderr, flush=True)
            time.sleep(pause)
    raise AssertionError("unreachable")


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[Errno -?\d+\] ", "", line)
