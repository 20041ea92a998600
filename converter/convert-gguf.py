#!/usr/bin/env python3
"""Converts a GGUF file to a .m file, and the tokenizer in it to a .t file.

Weights that are stored as F32, F16, BF16, Q8_0 or Q4_0 are copied bit by bit where the .m file has the same type; all
others (K- and I-quants) are dequantised first."""

import argparse
import pathlib
import sys

from dllama_convert.chat_formats import chat_words, settle_chat_format
from dllama_convert.convert import ModelImage, check_output, check_tokenizer, convert, run_tool, say_notes
from dllama_convert.families import plan_of
from dllama_convert.gguf_checkpoint import GgufCheckpoint, GgufFile, kept_types
from dllama_convert.gguf_config import read_config
from dllama_convert.gguf_tokenizer import read_tokenizer
from dllama_convert.quants import TYPES
from dllama_convert.tokenizer_file import write_tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path, help="GGUF file; of a split one the first part")
    parser.add_argument(
        "type",
        type=str.lower,
        choices=["keep", *(name.lower() for name in TYPES)],
        help="type of the weights; keep: each one's own, and of other quants q40 below 5 bits a value, else q80",
    )
    parser.add_argument(
        "name", help="name of the model: the files become dllama_model_NAME_TYPE.m and dllama_tokenizer_NAME.t"
    )
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("."), help="where to (default: here)")
    args = parser.parse_args()

    def work() -> str:
        file = GgufFile(args.file)
        checkpoint = GgufCheckpoint(file)
        plan = plan_of(read_config(file, checkpoint), checkpoint)
        types, weight_type = kept_types(plan, checkpoint) if args.type == "keep" else ({}, args.type.upper())
        image = ModelImage(plan, weight_type, args.name, types)
        tokenizer = None if file.get("tokenizer.ggml.tokens") is None else read_tokenizer(file)
        tokenizer_path = args.output_dir / f"dllama_tokenizer_{args.name}.t"
        if tokenizer:
            check_tokenizer(tokenizer, image.vocab_size)
            check_output(args.output_dir, image.layout.size, tokenizer_path.name)
        say_notes(plan)
        path = convert(checkpoint.encode_rows, image, args.output_dir)
        done = f"{path} ({path.stat().st_size / 1e6:.1f} MB)"
        if tokenizer is None:
            return f"{done}; the file has no tokenizer"
        try:
            settle_chat_format(tokenizer)
            write_tokenizer(tokenizer_path, tokenizer)
        except BaseException:
            path.unlink()  # half of the pair would stand in the way of the next try
            raise
        return f"{done}\n✅ {tokenizer_path}: {len(tokenizer.vocab)} tokens, {chat_words(tokenizer)}"

    return run_tool(work)


if __name__ == "__main__":
    sys.exit(main())
