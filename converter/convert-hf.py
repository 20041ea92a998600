#!/usr/bin/env python3
"""Converts a Hugging Face checkpoint folder to a .m file.

Weights are read, rounded and written piece by piece: memory stays below a gigabyte whatever the model's size."""

import argparse
import pathlib
import sys

from dllama_convert.checkpoint import open_checkpoint
from dllama_convert.convert import ModelImage, convert, encode_rows_of, run_tool, say_notes
from dllama_convert.families import make_plan
from dllama_convert.quants import TYPES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="folder with config.json and the weights")
    parser.add_argument("type", type=str.lower, choices=[name.lower() for name in TYPES], help="of the weights")
    parser.add_argument("name", help="name of the model: the file becomes dllama_model_NAME_TYPE.m")
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("."), help="where to (default: here)")
    parser.add_argument(
        "--quality", choices=["fast", "best"], default="fast",
        help="best tries several scales for each block of q40: closer to the checkpoint, but slower",
    )  # fmt: skip
    parser.add_argument("--ignore-unknown", action="store_true", help="convert although config.json has unknown fields")
    args = parser.parse_args()

    def work() -> str:
        checkpoint = open_checkpoint(args.folder)
        plan = make_plan(args.folder, checkpoint, args.ignore_unknown)
        say_notes(plan)
        image = ModelImage(plan, args.type.upper(), args.name)
        path = convert(encode_rows_of(checkpoint, args.quality), image, args.output_dir)
        return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"

    return run_tool(work)


if __name__ == "__main__":
    sys.exit(main())
