#!/usr/bin/env python3
"""Downloads a model from the Hugging Face hub and converts it to a .m and a .t file, shard by shard: the disk holds the
output and one shard at a time. Interrupted, it goes on where it stopped when it is run again.

HF_TOKEN is the access token, HF_ENDPOINT a mirror, HF_HUB_OFFLINE=1 forbids the network."""

import argparse
import pathlib
import sys

from dllama_convert.convert import run_tool
from dllama_convert.quants import TYPES
from dllama_convert.streaming import StreamingConversion


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the hub")
    parser.add_argument(
        "type", type=str.lower, choices=[name.lower() for name in TYPES], help="type of the weights"
    )
    parser.add_argument(
        "name", help="name of the model: the files become dllama_model_NAME_TYPE.m and dllama_tokenizer_NAME.t"
    )
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("."), help="where to (default: here)")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument(
        "--quality", choices=["fast", "best"], default="fast",
        help="best tries several scales for each block of q40: closer to the checkpoint, but slower",
    )  # fmt: skip
    parser.add_argument(
        "--ignore-unknown", action="store_true", help="convert although there are unknown fields or tensors"
    )
    parser.add_argument("--lora", type=pathlib.Path, metavar="FOLDER", help="adapter of PEFT to add to the weights")
    args = parser.parse_args()

    def work() -> str:
        conversion = StreamingConversion(
            args.repository, args.type.upper(), args.name, args.output_dir, args.ignore_unknown, args.quality, args.lora
        )
        path = conversion.run(args.revision)
        return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"

    return run_tool(work)


if __name__ == "__main__":
    sys.exit(main())
