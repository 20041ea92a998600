"""From a plan to a .m file: types, header and tensors, read, rounded and written piece by piece."""

import collections
import concurrent.futures
import io
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from . import ConversionError
from .checkpoint import Checkpoint
from .families import Output, Plan
from .legacy import legacy_header, legacy_order
from .model_file import Layout, TensorEntry, described_layout, legacy_layout, write_model
from .paths import printable
from .printing import shown
from .quants import block_values, encode, turn
from .tokenizer_file import Tokenizer

# Values of a piece: big enough that Python's share of the work does not show, small enough to keep several in flight.
PIECE_VALUES = 1 << 21
# Of the disk, so that nothing else on the machine starves.
_SPARE_BYTES = 64 << 20


class ModelImage:
    """What a .m file will be: its tensors' sources, its layout and its name. Nothing is read from the weights yet.

    `types` gives the type of single weights; all others have `weight_type`."""

    def __init__(self, plan: Plan, weight_type: str, name: str, types: dict[str, str] | None = None):
        types = types or {}
        header = legacy_header(plan, weight_type)
        order = legacy_order(plan) if header else plan.outputs
        if header and any(types.get(o.name, weight_type) != weight_type for o in order if o.is_weight):
            header, order = None, plan.outputs
        self.outputs: list[Output] = order
        self.entries = [
            TensorEntry(o.name, types.get(o.name, weight_type) if o.is_weight else "F32", o.shape) for o in order
        ]
        for entry in self.entries:
            block = block_values(entry.dtype)
            if entry.shape[-1] % block:
                raise ConversionError(
                    f"tensor {entry.name} is {entry.shape[-1]} wide: {entry.dtype} needs a multiple of {block}"
                )
        self.layout: Layout = (
            legacy_layout(header, self.entries)
            if header
            else described_layout(name, plan.architecture, plan.config, self.entries)
        )
        self.file_name = f"dllama_model_{name}_{weight_type.lower()}.m"
        self.vocab_size: int = plan.config["vocab_size"]
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,150}", name):
            raise ConversionError(f"{shown(name)} is no name for a file: letters, digits and . _ + - are allowed")


def _pieces(output: Output) -> list[slice | np.ndarray]:
    """The rows of an output in pieces of about PIECE_VALUES values."""
    width = output.shape[1] if len(output.shape) == 2 else 1
    if output.turned:
        width = math.prod(output.shape) // len(output.index)
    step = max(1, PIECE_VALUES // width)
    if output.turned:
        step = max(1, step // output.turned) * output.turned
    if isinstance(output.index, slice):
        begin, end = output.index.start, output.index.stop
        return [slice(at, min(end, at + step)) for at in range(begin, end, step)]
    return [output.index[at : at + step] for at in range(0, len(output.index), step)]


# Makes the stored bytes (flat uint8) of rows `index` of the checkpoint's tensor `source` as `dtype`; the last argument
# is Output.turned.
EncodeRows = Callable[[str, slice | np.ndarray, str, int], np.ndarray]


def encode_rows_of(checkpoint: Checkpoint, quality: str = "fast") -> EncodeRows:
    return lambda source, index, dtype, turned=0: encode(dtype, turn(checkpoint.rows(source, index), turned), quality)


class Encoder:
    """Makes the stored bytes of tensors, a few pieces at once: numpy works outside Python's lock."""

    def __init__(self, threads: int | None = None):
        self._threads = threads or max(2, os.cpu_count() or 1)
        self._pool = concurrent.futures.ThreadPoolExecutor(self._threads)

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def tensor(self, encode_rows: EncodeRows, output: Output, dtype: str) -> Iterator[memoryview]:
        """The bytes of `output` as `dtype`, in order. Raises ConversionError naming the source tensor."""

        def work(index) -> np.ndarray:
            try:
                return encode_rows(output.source, index, dtype, output.turned)
            except ConversionError as error:
                raise ConversionError(f"tensor {output.source}: {error}") from error

        waiting = collections.deque()
        for index in _pieces(output):
            waiting.append(self._pool.submit(work, index))
            if len(waiting) > self._threads:
                yield memoryview(waiting.popleft().result())
        while waiting:
            yield memoryview(waiting.popleft().result())


def progress_bar(total: int, text: str, unit: str = "B") -> tqdm:
    return tqdm(total=total, unit=unit, unit_scale=unit == "B", desc=text, disable=None)


def counted(bar: tqdm, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        bar.update(len(piece))
        yield piece


def check_output(output_dir: pathlib.Path, size: int, *names: str) -> None:
    """Makes the folder. Raises ConversionError if a file exists already or `size` bytes do not fit on its disk."""
    for name in names:
        if (output_dir / name).exists():
            raise ConversionError(f"{output_dir / name}: exists already: remove it, or choose another name")
    output_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output_dir).free
    if size + _SPARE_BYTES > free:
        needed = f"{(size + _SPARE_BYTES) / 1e9:.2f} GB are needed ({size + _SPARE_BYTES} bytes)"
        raise ConversionError(f"{output_dir}: {needed}, {free / 1e9:.2f} GB are free on this disk ({free} bytes)")


def check_tokenizer(t: Tokenizer, vocab_size: int) -> None:
    """Raises ConversionError if the tokenizer has tokens that the embedding has no row for."""
    if len(t.vocab) > vocab_size:
        raise ConversionError(
            f"the tokenizer has {len(t.vocab)} tokens, the embedding {vocab_size} rows: they do not belong together"
        )


def convert(encode_rows: EncodeRows, image: ModelImage, output_dir: pathlib.Path) -> pathlib.Path:
    """Writes the .m file into `output_dir` and returns its path. Raises ConversionError, OSError; then nothing is left
    of it."""
    check_output(output_dir, image.layout.size, image.file_name)
    path = output_dir / image.file_name
    by_name = {o.name: o for o in image.outputs}
    with Encoder() as encoder, progress_bar(sum(e.bytes for e in image.entries), path.name) as bar:

        def fill(entry: TensorEntry) -> Iterator[memoryview]:
            return counted(bar, encoder.tensor(encode_rows, by_name[entry.name], entry.dtype))

        write_model(path, image.layout, fill)
    return path


def say_notes(plan: Plan) -> None:
    """What is left out, kept or limited, a line each."""
    for note in plan.notes:
        print(f"💡 {note}", flush=True)


def run_tool(work: Callable[[], str]) -> int:
    """Runs a converter's command: prints the line it returns, or its error as one line. Returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 shows \\u2705 rather than ending in an error when everything is done.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        print(printable(f"✅ {work()}"))
    except ConversionError as error:
        print(printable(f"🚨 {error}"), file=sys.stderr)
        return 1
    except OSError as error:
        print(f"🚨 {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n🛑 interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0
