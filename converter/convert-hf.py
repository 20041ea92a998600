#!/usr/bin/env python3
"""Converts a Hugging Face checkpoint folder to a .m file.

Weights are read, rounded and written piece by piece: memory stays below a gigabyte whatever the model's size."""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import sys

import numpy as np
from dllama_convert import ConversionError
from dllama_convert.checkpoint import Checkpoint, open_checkpoint
from dllama_convert.families import Output, make_plan
from dllama_convert.legacy import legacy_header, legacy_order
from dllama_convert.model_file import TensorEntry, write_described, write_legacy
from dllama_convert.quants import BLOCK, encode
from tqdm import tqdm

# Values of a piece: big enough that Python's share of the work does not show, small enough to keep several in flight.
PIECE_VALUES = 1 << 21


def pieces(output: Output) -> list[slice | np.ndarray]:
    """The rows of an output in pieces of about PIECE_VALUES values."""
    width = output.shape[1] if len(output.shape) == 2 else 1
    step = max(1, PIECE_VALUES // width)
    if isinstance(output.index, slice):
        begin, end = output.index.start, output.index.stop
        return [slice(at, min(end, at + step)) for at in range(begin, end, step)]
    return [output.index[at : at + step] for at in range(0, len(output.index), step)]


def convert(folder: pathlib.Path, weight_type: str, name: str, output_dir: pathlib.Path, ignore_unknown: bool) -> pathlib.Path:
    checkpoint: Checkpoint = open_checkpoint(folder)
    plan = make_plan(folder, checkpoint, ignore_unknown)
    header = legacy_header(plan, weight_type)
    outputs = legacy_order(plan) if header else plan.outputs
    entries = [TensorEntry(o.name, weight_type if o.is_weight else "F32", o.shape) for o in outputs]
    for entry in entries:
        if entry.dtype in ("Q80", "Q40") and entry.shape[-1] % BLOCK:
            raise ConversionError(f"tensor {entry.name} is {entry.shape[-1]} wide: {entry.dtype} needs a multiple of {BLOCK}")
    path = output_dir / f"dllama_model_{name}_{weight_type.lower()}.m"
    output_dir.mkdir(parents=True, exist_ok=True)
    by_name = {o.name: o for o in outputs}
    threads = max(2, os.cpu_count() or 1)
    bar = tqdm(total=sum(e.bytes for e in entries), unit="B", unit_scale=True, desc=path.name, disable=None)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:

        def fill(entry: TensorEntry):
            output = by_name[entry.name]

            def work(index) -> np.ndarray:
                try:
                    return encode(entry.dtype, checkpoint.rows(output.source, index))
                except ConversionError as error:
                    raise ConversionError(f"tensor {output.source}: {error}") from error

            # numpy works outside Python's lock: a few pieces are made at once and written in order.
            waiting = collections.deque()
            for index in pieces(output):
                waiting.append(pool.submit(work, index))
                if len(waiting) > threads:
                    yield from written(waiting.popleft())
            while waiting:
                yield from written(waiting.popleft())

        def written(future):
            piece = memoryview(future.result())
            bar.update(len(piece))
            yield piece

        if header:
            write_legacy(path, header, entries, fill)
        else:
            write_described(path, name, plan.architecture, plan.config, entries, fill)
    bar.close()
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="folder with config.json and the weights")
    parser.add_argument("type", type=str.lower, choices=["q40", "q80", "f16", "f32", "bf16"], help="type of the weights")
    parser.add_argument("name", help="name of the model: the file becomes dllama_model_NAME_TYPE.m")
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("."), help="where to (default: here)")
    parser.add_argument("--ignore-unknown", action="store_true", help="convert although config.json has unknown fields")
    args = parser.parse_args()
    try:
        path = convert(args.folder, args.type.upper(), args.name, args.output_dir, args.ignore_unknown)
    except (ConversionError, OSError) as error:
        print(f"🚨 {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n🛑 interrupted; nothing was left behind", file=sys.stderr)
        return 130
    print(f"✅ {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
