"""Downloads without conversion: whole checkpoints, single files, and .m files that others have published."""

import os
import pathlib
import re
import sys

from . import ConversionError
from .hub import RemoteFile, Repository, check_space, open_repository
from .paths import below, printable
from .streaming import fetch_small_files, weight_files


def fetch_files(repository: Repository, names: list[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """The named files; of a split GGUF all parts."""
    wanted = []
    for name in names:
        split = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", name)
        count = int(split[2]) if split else 1
        wanted += [f"{split[1]}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)] if split else [name]
    for name in wanted:
        if name not in repository.files:
            raise ConversionError(f"{repository.name}: there is no file {name}")
    check_space([repository.files[name] for name in wanted], folder)
    return [_fetch(repository, repository.files[name], folder) for name in wanted]


def fetch_checkpoint(repository: Repository, folder: pathlib.Path) -> pathlib.Path:
    """Everything that a conversion needs, then a file `complete` that says so."""
    complete = folder / "complete"
    complete.unlink(missing_ok=True)
    fetch_small_files(repository, folder)
    weights = weight_files(repository, folder)
    check_space(weights, folder)
    for file in weights:
        _fetch(repository, file, folder)
    complete.write_text(f"{repository.name} {repository.commit}\n")
    return folder


def ready_made(repository: Repository) -> list[RemoteFile]:
    """The parts of the .m file in a repository of distributed-llama's kind, in order; empty in all others."""
    return [file for name, file in sorted(repository.files.items()) if name.startswith("dllama_model_")]


def fetch_ready_made(repository: Repository, name: str, folder: pathlib.Path) -> pathlib.Path:
    """The .m and .t file under our names. Parts are joined one by one: the disk holds the file and one part."""
    parts = ready_made(repository)
    kind = next((kind for kind in ("q40", "q80", "f16", "f32") if kind in parts[0].name.lower()), "q40")
    path = below(folder, f"dllama_model_{name}_{kind}.m")
    tokenizers = [file for file in repository.files if re.fullmatch(r"dllama_tokenizer_.*\.t", file)]
    if len(tokenizers) != 1:
        raise ConversionError(f"{repository.name}: has {len(tokenizers)} files dllama_tokenizer_*.t, must have one")
    if path.exists():
        return path
    tokenizer = repository.fetch(repository.files[tokenizers[0]], folder)
    os.replace(tokenizer, folder / f"dllama_tokenizer_{name}.t")
    partial = path.with_name(path.name + ".partial")
    with open(partial, "r+b" if partial.exists() else "w+b") as out:
        have, joined = out.seek(0, os.SEEK_END), 0
        left = max(0, sum(file.size for file in parts) - have)
        check_space(parts, folder, left + max(file.size for file in parts))
        for i, file in enumerate(parts):
            if joined + file.size > have:  # what is there of this part may have been cut off
                out.truncate(joined)
                out.seek(joined)
                print(f"⏩ {file.name}, {i + 1} of {len(parts)}", flush=True)
                part = repository.fetch(file, folder)
                with open(part, "rb") as source:
                    while block := source.read(1 << 24):
                        out.write(block)
                out.flush()
                os.fsync(out.fileno())
                part.unlink()
                have = joined + file.size
            joined += file.size
    os.replace(partial, path)
    return path


def _fetch(repository: Repository, file: RemoteFile, folder: pathlib.Path) -> pathlib.Path:
    print(printable(f"⏩ {file.name} ({file.size / 1e6:.1f} MB)"), file=sys.stderr, flush=True)
    return repository.fetch(file, folder)


def download(name: str, model: str, folder: pathlib.Path, files: list[str], revision: str | None) -> str:
    """What converter/download-hub.py does; returns the line it prints."""
    repository = open_repository(name, revision)
    folder.mkdir(parents=True, exist_ok=True)
    if files:
        return f"{', '.join(str(path) for path in fetch_files(repository, files, folder))}"
    if ready_made(repository):
        return str(fetch_ready_made(repository, model, folder))
    return str(fetch_checkpoint(repository, folder / "checkpoint"))
