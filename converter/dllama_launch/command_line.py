"""The launcher's command line."""

import argparse
import os
import pathlib
import sys

from dllama_convert import ConversionError
from dllama_convert.paths import printable

from .cluster import DEFAULT_PORT, setup_cluster
from .errors import LaunchError
from .files import convert_model, download
from .models import BITS
from .places import DATA
from .reports import doctor, list_models
from .run import run_model, worker

API_PORT = 9990  # dllama's


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise LaunchError(f"{message} ({self.prog} --help)")


def gguf_name(text: str) -> str:
    if not text.endswith(".gguf"):
        raise argparse.ArgumentTypeError(f"{text} does not end in .gguf")
    return text


def parse(argv: list[str], about: str) -> argparse.Namespace:
    rest = []
    if "--" in argv:
        at = argv.index("--")
        argv, rest = argv[:at], argv[at + 1 :]
    parser = Parser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, run, model: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if model:
            command.add_argument("name", metavar="NAME", help="a name of the list, demo, or OWNER/NAME on the hub")
        command.add_argument("--dry-run", action="store_true", help="print the commands instead of running them")
        default = pathlib.Path(os.environ.get("DLLAMA_MODELS", DATA / "models"))
        command.add_argument("--models-dir", type=pathlib.Path, default=default, metavar="FOLDER", help=f"({default})")
        return command

    def add_conversion(command: argparse.ArgumentParser) -> None:
        command.add_argument("--type", choices=list(BITS), help="type of the weights (q40)")
        command.add_argument(
            "--quality", choices=["fast", "best"], default="fast", help="best: q40 closer to the checkpoint, slower"
        )
        command.add_argument(
            "--ignore-unknown", action="store_true", help="convert although there are unknown fields or tensors"
        )
        command.add_argument(
            "--lora", type=pathlib.Path, metavar="FOLDER", help="add this adapter of PEFT to the weights"
        )
        command.add_argument("--gguf", metavar="FILE", type=gguf_name, help="convert this GGUF file of the repository")

    def add_run(name: str, text: str) -> argparse.ArgumentParser:
        command = add(name, text, lambda args: run_model(name, args))
        add_conversion(command)
        command.add_argument("--cluster", action="store_true", help="with the workers of setup-cluster")
        command.add_argument("--force", action="store_true", help="even if the memory is too small")
        return command

    add("list", "Models and what they need", list_models, model=False)
    add("doctor", "This machine, and what would run on it", doctor, model=False)
    add("download", "Fetch the checkpoint without converting it", download)
    add_conversion(add("convert", "Make the model's files, shard by shard", convert_model))
    inference = add_run("inference", "Continue a prompt")
    inference.add_argument("--prompt", required=True, metavar="TEXT")
    inference.add_argument("--steps", type=int, default=256, metavar="N", help="tokens of prompt and answer (256)")
    add_run("chat", "Talk to the model")
    api = add_run("api", "Serve OpenAI's and Anthropic's APIs, and a web page to talk to the model")
    api.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all of this machine's")
    api.add_argument("--port", type=int, default=API_PORT, metavar="N", help=f"({API_PORT})")
    add_run("benchmark", "Measure prompts and answers")
    cluster = add("setup-cluster", "Write what each machine of a cluster needs, and check them", setup_cluster)
    cluster.add_argument("--nodes", nargs="+", required=True, metavar="HOST[:PORT]", help=f"workers ({DEFAULT_PORT})")
    serve = add("worker", "Compute along with a root on another machine", worker, model=False)
    serve.add_argument("--port", type=int, default=DEFAULT_PORT, metavar="N")
    serve.add_argument("--secret-file", metavar="FILE", help="the cluster's secret, from setup-cluster")
    if not argv:
        parser.print_help()
        sys.exit(1)
    args = parser.parse_args(argv)
    args.rest = rest
    args.type_given = getattr(args, "type", None) is not None
    if not args.type_given:
        args.type = "q40"
    return args


def main(about: str) -> int:
    """`about`: what --help begins with."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? in place of our signs
    try:
        args = parse(sys.argv[1:], about)
        return args.run(args)
    except BrokenPipeError:  # ./launch-glm.py list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"🚨 {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        return 1
    except (LaunchError, ConversionError) as error:
        print(printable(f"🚨 {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
