#!/usr/bin/env python3
"""Downloads a model from the Hugging Face hub without converting it; interrupted, it goes on when it is run again.

A checkpoint goes to OUTPUT_DIR/checkpoint. A .m file that the repository offers (as distributed-llama's do) goes to
OUTPUT_DIR under our names, its parts joined. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are heeded."""

import argparse
import pathlib
import sys

from dllama_convert.convert import run_tool
from dllama_convert.downloads import download


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the hub")
    parser.add_argument("name", help="name of the model: a .m file becomes dllama_model_NAME_TYPE.m")
    parser.add_argument("--file", action="append", default=[], help="only this file, a GGUF say; may be repeated")
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("."), help="where to (default: here)")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    args = parser.parse_args()
    return run_tool(lambda: download(args.repository, args.name, args.output_dir, args.file, args.revision))


if __name__ == "__main__":
    sys.exit(main())
