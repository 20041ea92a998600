"""A model's files: found, downloaded, converted."""

import pathlib
import re

from dllama_convert.paths import below

from .errors import LaunchError
from .models import Model, find_model, with_adapter
from .places import CONVERTER
from .tools import converter_python, start


def model_files(folder: pathlib.Path, kind: str) -> tuple[pathlib.Path, pathlib.Path | None] | None:
    """The .m file of that type (or the only one) in a model's folder, and its tokenizer."""
    found = sorted(folder.glob(f"dllama_model_*_{kind}.m")) or sorted(folder.glob("dllama_model_*.m"))
    tokenizers = sorted(folder.glob("dllama_tokenizer_*.t"))
    return (found[0], tokenizers[0] if tokenizers else None) if found else None


def home_of(model: Model, args) -> pathlib.Path:
    """The model's folder, which may be a link: users move large ones to another disk."""
    return below(args.models_dir, model.name, follow_links=True)


def model_folder(model: Model, args) -> pathlib.Path:
    """The model's folder, made if it is not there."""
    folder = home_of(model, args)
    if not args.dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ".gitignore").exists():
            (folder / ".gitignore").write_text("*\n")
    return folder


def convert(model: Model, args) -> int:
    """Makes the .m and .t file if they are not here."""
    if model.repository is None:
        raise LaunchError("the demo model comes with the program: there is nothing to do")
    folder = model_folder(model, args)
    python = converter_python(args.dry_run)
    to = ["--output-dir", folder]
    if args.quality != "fast" and (args.gguf or model.ready_made):
        raise LaunchError("--quality best is for checkpoints: GGUF and .m files are quantised already")
    if args.ignore_unknown and (args.gguf or model.ready_made):
        raise LaunchError("--ignore-unknown is for checkpoints: GGUF and .m files have no config.json")
    if args.lora and (args.gguf or model.ready_made):
        raise LaunchError("--lora is for checkpoints: GGUF and .m files are quantised already")
    options = ["--quality", args.quality] if args.quality != "fast" else []
    options += ["--ignore-unknown"] if args.ignore_unknown else []
    options += ["--lora", args.lora.resolve()] if args.lora else []
    if args.gguf:
        fetch = [python, CONVERTER / "download-hub.py", model.repository, model.name, "--file", args.gguf, *to]
        kind = args.type if args.type_given else "keep"
        file = below(folder, args.gguf, deep=True)
        make = [python, CONVERTER / "convert-gguf.py", file, kind, model.name, *to]
        if found := model_files(folder, args.type):
            raise LaunchError(f"{found[0]} is there already: remove it to convert again")
        status = start(fetch, args.dry_run) or start(make, args.dry_run)
        if status == 0 and not args.dry_run:  # the .m file holds the same
            stem, count = re.fullmatch(r"(.*?)(?:-\d{5}-of-(\d{5}))?\.gguf", args.gguf).groups()
            parts = [f"{stem}-{i:05}-of-{count}.gguf" for i in range(1, int(count) + 1)] if count else [args.gguf]
            for part in parts:
                (folder / part).unlink()
        return status
    if model.ready_made:
        return start([python, CONVERTER / "download-hub.py", model.repository, model.name, *to], args.dry_run)
    if (folder / "checkpoint" / "complete").exists():
        checkpoint = folder / "checkpoint"
        if not list(folder.glob("dllama_tokenizer_*.t")):
            start([python, CONVERTER / "convert-tokenizer-hf.py", checkpoint, model.name, *to], args.dry_run)
        command = [python, CONVERTER / "convert-hf.py", checkpoint, args.type, model.name, *to, *options]
    else:
        command = [python, CONVERTER / "convert-hub.py", model.repository, args.type, model.name, *to, *options]
    return start(command, args.dry_run)


def convert_model(args) -> int:
    return convert(with_adapter(find_model(args.name), args.lora), args)


def ensure_model(model: Model, args) -> tuple[pathlib.Path, pathlib.Path | None]:
    status = convert(model, args)
    folder = home_of(model, args)
    if args.dry_run:
        names = f"dllama_model_{model.name}_{args.type}.m", f"dllama_tokenizer_{model.name}.t"
        return folder / names[0], folder / names[1]
    found = model_files(folder, args.type)
    if status != 0 or not found:
        raise LaunchError(f"{model.name} is not complete: the same command goes on where it stopped")
    return found


def download(args) -> int:
    model = find_model(args.name)
    if model.repository is None:
        raise LaunchError("the demo model comes with the program: there is nothing to do")
    folder = model_folder(model, args)
    python = converter_python(args.dry_run)
    return start(
        [python, CONVERTER / "download-hub.py", model.repository, model.name, "--output-dir", folder], args.dry_run
    )
