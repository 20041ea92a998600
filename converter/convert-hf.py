#!/usr/bin/env python3
"""Converts a Hugging Face checkpoint folder to a .m file.

Weights are read, rounded and written piece by piece: memory stays below a gigabyte whatever the model's size."""

import argparse
import pathlib
import sys

from dllama_convert import ConversionError
from dllama_convert.checkpoint import open_checkpoint
from dllama_convert.convert import ModelImage, check_tokenizer, convert, encode_rows_of, run_tool, say_notes
from dllama_convert.families import make_plan
from dllama_convert.lora import LoraCheckpoint, refuse_adapter
from dllama_convert.quants import TYPES
from dllama_convert.tokenizers import has_tokenizer, load_tokenizer


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
    parser.add_argument("--lora", type=pathlib.Path, metavar="FOLDER", help="adapter of PEFT to add to the weights")
    parser.add_argument("--weights-only", action="store_true", help="do not look whether the tokenizer fits")
    args = parser.parse_args()

    def work() -> str:
        refuse_adapter(args.folder)
        checkpoint = open_checkpoint(args.folder)
        if args.lora:
            checkpoint = LoraCheckpoint(checkpoint, args.lora)
        plan = make_plan(args.folder, checkpoint, args.ignore_unknown)
        plan.notes += checkpoint.notes if args.lora else []
        image = ModelImage(plan, args.type.upper(), args.name)
        if not args.weights_only and has_tokenizer(args.folder):
            try:
                check_tokenizer(load_tokenizer(args.folder), image.vocab_size)
            except ConversionError as error:
                raise ConversionError(f"{error} (--weights-only converts the weights all the same)") from error
        say_notes(plan)
        path = convert(encode_rows_of(checkpoint, args.quality), image, args.output_dir)
        return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"

    return run_tool(work)


if __name__ == "__main__":
    sys.exit(main())
