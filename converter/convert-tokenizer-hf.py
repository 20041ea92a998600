#!/usr/bin/env python3
"""Converts the tokenizer of a Hugging Face folder to a .t file."""

import argparse
import pathlib
import sys

from dllama_convert.chat_formats import chat_words, settle_chat_format
from dllama_convert.convert import check_output, run_tool
from dllama_convert.lora import refuse_adapter
from dllama_convert.tokenizer_file import write_tokenizer
from dllama_convert.tokenizers import load_tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="folder with tokenizer.json, tokenizer.model or vocab.json")
    parser.add_argument("name", help="name of the model: the file becomes dllama_tokenizer_NAME.t")
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("."), help="where to (default: here)")
    args = parser.parse_args()
    path = args.output_dir / f"dllama_tokenizer_{args.name}.t"

    def work() -> str:
        refuse_adapter(args.folder)
        tokenizer = load_tokenizer(args.folder)
        check_output(args.output_dir, 0, path.name)
        settle_chat_format(tokenizer)
        write_tokenizer(path, tokenizer)
        return f"{path}: {len(tokenizer.vocab)} tokens, {chat_words(tokenizer)}"

    return run_tool(work)


if __name__ == "__main__":
    sys.exit(main())
