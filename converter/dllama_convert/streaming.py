"""Conversion of a repository on the hub shard by shard: each is downloaded, converted and deleted before the next.

Beside the finished file NAME.m there is, until it is finished:
    NAME.m.partial       grows to the full size; its first bytes, the header, are written at the very end
    NAME.m.work/         the checkpoint's small files, the shard at hand, scales that lie in other shards, and
    NAME.m.work/journal  JSON lines: first what is converted and the tensors of each shard, then a line a finished shard
                         with the hashes of the tensors it gave
A line is written when the bytes it speaks of are on the disk, so that whatever ends the process, even kill -9 or the
power, the next run goes on behind the last line."""

import fcntl
import json
import math
import os
import pathlib
import shutil

import xxhash

from . import ConversionError
from .chat_formats import chat_words, settle_chat_format
from .checkpoint import READABLE, Checkpoint, open_checkpoint, read_json, read_safetensors, without_scales
from .convert import Encoder, ModelImage, check_tokenizer, convert, counted, encode_rows_of, progress_bar, say_notes
from .families import make_plan
from .fp8 import pair_scales
from .hub import RemoteFile, Repository, open_repository
from .lora import LoraCheckpoint, adapter_id, refuse_adapter
from .model_file import write_tensor
from .paths import below, printable
from .tokenizer_file import write_tokenizer
from .tokenizers import has_tokenizer, load_tokenizer

# What a conversion needs besides the weights, where the repository has it.
SMALL_FILES = (
    "config.json", "generation_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json",
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "ice_text.model", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
_PIECE_BYTES = 4 << 20
_SPARE_BYTES = 64 << 20
_SMALL_BYTES = 256 << 20  # the largest tokenizers have 35 MB


class RemoteTensors:
    """A checkpoint (checkpoint.py) that is known by its headers; single tensors can be read from the hub."""

    def __init__(self, repository: Repository, shards: dict[str, dict[str, tuple[str, tuple[int, ...]]]]):
        self._repository = repository
        self._tensors = {name: entry for tensors in shards.values() for name, entry in tensors.items()}
        self.shard_of = {name: shard for shard, tensors in shards.items() for name in tensors}
        self._scale_of = pair_scales({name: (dtype, tuple(shape)) for name, (dtype, shape) in self._tensors.items()})

    def names(self) -> list[str]:
        return without_scales(self._tensors, self._scale_of)

    def shape(self, name: str) -> tuple[int, ...]:
        dtype, shape = self._tensors[name]
        if dtype not in _ITEM_BYTES:
            raise ConversionError(f"tensor {name} has type {dtype}: only {READABLE} are supported")
        return tuple(shape)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors have the same bytes. Both are read from the hub, up to the first difference."""
        if self._tensors[name] != self._tensors[other]:
            return False
        size = self._bytes(name)
        places = [self._repository.tensor_place(self.shard_of[one], one) for one in (name, other)]
        with progress_bar(size, f"comparing {name} with {other}") as bar:
            for at in range(0, size, _PIECE_BYTES):
                end = min(size, at + _PIECE_BYTES)
                one, two = (
                    self._repository.read(self.shard_of[which], place + at, place + end)
                    for which, place in zip((name, other), places, strict=True)
                )
                if one != two:
                    return False
                bar.update(end - at)
        return True

    def fetch_foreign_scales(self, shard: str, path: pathlib.Path) -> bool:
        """Writes the scales of the shard's weights that lie in other shards to the safetensors file `path`. False if
        there are none."""
        pairs = [(name, scale) for name, scale in self._scale_of.items() if self.shard_of[name] == shard]
        header, body = {}, b""
        for scale in (scale for _, scale in pairs if self.shard_of[scale] != shard):
            place = self._repository.tensor_place(self.shard_of[scale], scale)
            dtype, shape = self._tensors[scale]
            data = self._repository.read(self.shard_of[scale], place, place + self._bytes(scale))
            header[scale] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
            body += data
        text = json.dumps(header).encode()
        if header:
            path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        return bool(header)

    def _bytes(self, name: str) -> int:
        dtype, shape = self._tensors[name]
        return math.prod(shape) * _ITEM_BYTES[dtype]


class Journal:
    """The lines of a journal file. A last line that was cut off is forgotten."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.lines: list[dict] = []
        if path.exists():
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]
            self.lines = [json.loads(line) for line in whole.splitlines()]
            with open(path, "r+b") as file:
                file.truncate(len(whole))

    def add(self, line: dict) -> None:
        with open(self._path, "ab") as file:
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            _to_disk(file)
        self.lines.append(line)


class StreamingConversion:
    """One conversion, from the hub's `repository` (owner/name) to `output_dir`/dllama_model_NAME_TYPE.m."""

    def __init__(
        self,
        repository: str,
        weight_type: str,
        name: str,
        output_dir: pathlib.Path,
        ignore_unknown: bool = False,
        quality: str = "fast",
        lora: pathlib.Path | None = None,
    ):
        self.path = below(output_dir, f"dllama_model_{name}_{weight_type.lower()}.m")
        self.work = self.path.with_name(self.path.name + ".work")
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._wanted = (repository, weight_type, name)
        self._ignore_unknown = ignore_unknown
        self._quality = quality
        self._lora = lora

    def run(self, revision: str | None = None) -> pathlib.Path:
        """Converts, or goes on where an earlier run ended, and returns the .m file's path. Raises ConversionError."""
        if self.path.exists():
            self._clean_up()
            return self.path
        self.work.mkdir(parents=True, exist_ok=True)
        with open(self.work / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConversionError(f"{self.work}: another process is converting this model") from error
            self._run(revision)
        self._clean_up()
        return self.path

    def _run(self, revision: str | None) -> None:
        journal = Journal(self.work / "journal")
        if not journal.lines:
            journal.add(self._begin(revision))
        start = journal.lines[0]
        begun = (start["repository"], start["type"], start["name"], start.get("quality", "fast"), start.get("lora", ""))
        if begun != (*self._wanted, self._quality, self._lora_id()):
            raise ConversionError(f"{self.work}: belongs to the conversion of {' '.join(begun)}: remove it first")
        files = {entry["name"]: RemoteFile(**entry) for entry in start["files"]}
        repository = Repository(start["repository"], start["commit"], files)
        if start["shards"]:
            self._convert_shards(repository, start["shards"], journal)
        else:
            self._convert_whole(repository)

    def _begin(self, revision: str | None) -> dict:
        """The journal's first line."""
        repository = open_repository(self._wanted[0], revision)
        fetch_small_files(repository, self.work)
        if "adapter_config.json" in repository.files and "config.json" not in repository.files:
            repository.fetch(repository.files["adapter_config.json"], self.work)
            refuse_adapter(self.work)
        if "config.json" not in repository.files:
            raise ConversionError(f"{repository.name}: there is no config.json: not a model of transformers")
        weights = weight_files(repository, self.work)
        shards = {}
        if weights[0].name.endswith(".safetensors"):
            with progress_bar(len(weights), "headers", unit="shards") as bar:
                for file in weights:
                    shards[file.name] = repository.tensors(file.name)
                    bar.update(1)
        return {
            "repository": repository.name,
            "commit": repository.commit,
            "type": self._wanted[1],
            "name": self._wanted[2],
            "quality": self._quality,
            "lora": self._lora_id(),
            "files": [vars(file) for file in weights],
            "shards": shards,
        }

    def _lora_id(self) -> str:
        return adapter_id(self._lora) if self._lora else ""

    def _image(self, checkpoint) -> ModelImage:
        _, weight_type, name = self._wanted
        plan = make_plan(self.work, checkpoint, self._ignore_unknown)
        plan.notes += checkpoint.notes if self._lora else []
        say_notes(plan)
        return ModelImage(plan, weight_type, name)

    def _convert_tokenizer(self, vocab_size: int) -> None:
        """Before the first weight: one that cannot be read or does not fit ends the conversion."""
        path = self.path.with_name(f"dllama_tokenizer_{self._wanted[2]}.t")
        if not has_tokenizer(self.work):
            print("⚠️ the repository has no tokenizer: only the weights are converted", flush=True)
        elif not path.exists():
            tokenizer = load_tokenizer(self.work)
            check_tokenizer(tokenizer, vocab_size)
            settle_chat_format(tokenizer)
            write_tokenizer(path, tokenizer)
            print(printable(f"💡 {chat_words(tokenizer)}"), flush=True)

    def _convert_shards(self, repository: Repository, shards: dict, journal: Journal) -> None:
        remote = RemoteTensors(repository, shards)
        whole = LoraCheckpoint(remote, self._lora) if self._lora else remote
        image = self._image(whole)
        self._convert_tokenizer(image.vocab_size)
        layout = image.layout
        # A converter of another version may plan otherwise: what it left cannot be gone on with.
        fingerprint = f"{xxhash.xxh3_64_intdigest(layout.header([0] * len(layout.tensors))):016x}"
        done = [line for line in journal.lines[1:] if line["layout"] == fingerprint and self._partial.exists()]
        hashes = {int(i): int(value, 16) for line in done for i, value in line["hashes"].items()}
        finished = {line["shard"] for line in done}
        by_shard: dict[str, list[int]] = {}
        for i, output in enumerate(image.outputs):
            by_shard.setdefault(remote.shard_of[output.source], []).append(i)
        left = [name for name in by_shard if name not in finished]
        self._check_space(layout.size, [repository.files[name] for name in left])

        with open(self._partial, "r+b" if done else "w+b") as out, Encoder() as encoder:
            out.truncate(layout.size)
            for number, name in enumerate(left, len(finished) + 1):
                print(f"⏩ {name}, {number} of {len(by_shard)}", flush=True)
                shard = repository.fetch(repository.files[name], self.work)
                files = [shard]
                if remote.fetch_foreign_scales(name, self.work / "scales"):
                    files.append(self.work / "scales")
                checkpoint = Checkpoint({file: read_safetensors(file) for file in files})
                encode_rows = encode_rows_of(whole.over(checkpoint) if self._lora else checkpoint, self._quality)
                with progress_bar(sum(layout.tensors[i].bytes for i in by_shard[name]), "converting") as bar:
                    for i in by_shard[name]:
                        output, dtype = image.outputs[i], layout.tensors[i].dtype
                        pieces = encoder.tensor(encode_rows, output, dtype)
                        hashes[i] = write_tensor(out, layout, i, counted(bar, pieces))
                checkpoint.close()
                _to_disk(out)
                journal.add(
                    {"shard": name, "layout": fingerprint, "hashes": {i: f"{hashes[i]:016x}" for i in by_shard[name]}}
                )
                shard.unlink()
            out.seek(0)
            out.write(layout.header([hashes[i] for i in range(len(layout.tensors))]))
            _to_disk(out)
        os.replace(self._partial, self.path)

    def _convert_whole(self, repository: Repository) -> None:
        """PyTorch's shards say what they hold only at their end: all are downloaded first."""
        for file in repository.files.values():
            repository.fetch(file, self.work)
        checkpoint = open_checkpoint(self.work)
        if self._lora:
            checkpoint = LoraCheckpoint(checkpoint, self._lora)
        image = self._image(checkpoint)
        self._convert_tokenizer(image.vocab_size)
        convert(encode_rows_of(checkpoint, self._quality), image, self.path.parent)

    def _check_space(self, size: int, left: list[RemoteFile]) -> None:
        """Raises ConversionError if the rest of the output and the largest shard do not fit on the disk."""
        written = self._partial.stat().st_blocks * 512 if self._partial.exists() else 0
        needed = size - written + max((file.size for file in left), default=0) + _SPARE_BYTES
        free = shutil.disk_usage(self.work).free + sum(p.stat().st_size for p in self.work.glob("*.incomplete"))
        if needed > free:
            raise ConversionError(
                f"{self.path.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free on this disk"
            )

    def _clean_up(self) -> None:
        self._partial.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)


def _to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def fetch_small_files(repository: Repository, folder: pathlib.Path) -> None:
    """What a conversion needs besides the weights. Raises ConversionError if one of them is too large to be that."""
    for name in SMALL_FILES:
        if name not in repository.files:
            continue
        file = repository.files[name]
        if file.size > _SMALL_BYTES:
            raise ConversionError(f"{repository.name}: {name} has {file.size} bytes, more than {_SMALL_BYTES}")
        repository.fetch(file, folder)


def weight_files(repository: Repository, folder: pathlib.Path) -> list[RemoteFile]:
    """The shards of a checkpoint whose small files are in `folder`; safetensors before PyTorch's form."""
    for kind, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        single, index = f"{kind}.{suffix}", f"{kind}.{suffix}.index.json"
        if index in repository.files:
            weight_map = read_json(folder / index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise ConversionError(f"{repository.name}: {index} has no weight_map from tensors to files")
            names = sorted(set(weight_map.values()))
        elif single in repository.files:
            names = [single]
        else:
            continue
        for name in names:
            if name not in repository.files:
                raise ConversionError(f"{repository.name}: {index} names {name}, which is not there")
        if names:
            return [repository.files[name] for name in names]
    raise ConversionError(f"{repository.name}: there is neither model.safetensors nor pytorch_model.bin")
