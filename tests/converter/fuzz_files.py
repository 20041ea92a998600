"""Mutates files that the converter reads and reads them: fuzz_files.py TARGET ROUNDS SEED. Only ConversionError and
OSError may come out, each within 2 seconds of the processor."""

import io
import json
import pathlib
import random
import struct
import sys
import tempfile
import time
import traceback
import zipfile

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "converter"), str(HERE.parent / "launcher")]

from checkpoints import golden, write_folder  # noqa: E402
from dllama_convert import ConversionError  # noqa: E402
from dllama_convert.checkpoint import open_checkpoint  # noqa: E402
from dllama_convert.families import make_plan, plan_of  # noqa: E402
from dllama_convert.gguf_checkpoint import GgufCheckpoint, GgufFile  # noqa: E402
from dllama_convert.gguf_config import read_config  # noqa: E402
from dllama_convert.gguf_tokenizer import read_tokenizer  # noqa: E402
from dllama_convert.sentencepiece_proto import _field, model_proto  # noqa: E402
from dllama_convert.tokenizers import _BYTES, load_tokenizer  # noqa: E402

NUMBERS = [0, 1, 2, 7, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 64) - 1]
VALUES = [
    None,
    True,
    -1,
    0,
    3,
    1 << 40,
    1 << 63,
    1e400,
    0.5,
    "",
    "x",
    "../../etc/passwd",
    "\x00",
    [],
    [[]],
    {},
    [1, 2, 3],
]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few changes: numbers, cuts, repeats, swaps."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] = rng.randrange(256)
        elif kind == 1:
            form = rng.choice(["<B", "<H", "<I", "<Q"])
            size = struct.calcsize(form)
            out[at : at + size] = struct.pack(form, rng.choice(NUMBERS) & ((1 << 8 * size) - 1))
        elif kind == 2:
            del out[at : at + rng.choice([1, 2, 4, 8, 64])]
        elif kind == 3:
            out[at:at] = out[at : at + rng.choice([1, 4, 16, 256])]
        elif kind == 4:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 2, 8])))
        else:
            del out[at:]
    return bytes(out)


def mutate_json(node, rng: random.Random, depth: int = 0):
    """One place of the document becomes something else."""
    if isinstance(node, dict) and node and rng.random() < 0.9 - 0.1 * depth:
        key = rng.choice(list(node))
        kind = rng.random()
        changed = dict(node)
        if kind < 0.1:
            del changed[key]
        elif kind < 0.2:
            changed[str(rng.choice(VALUES))[:20] or "k"] = changed.pop(key)
        else:
            changed[key] = mutate_json(node[key], rng, depth + 1)
        return changed
    if isinstance(node, list) and node and rng.random() < 0.8:
        at = rng.randrange(len(node))
        return [*node[:at], mutate_json(node[at], rng, depth + 1), *node[at + 1 :]]
    if isinstance(node, int) and rng.random() < 0.5:
        return node + rng.choice([-1, 1, 4, node])
    return rng.choice(VALUES)


class Target:
    """A folder with a checkpoint; `step` changes a file and reads it as the converter does."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder / "model"
        config, tensors = golden("llama")
        self.build(config, tensors)

    def build(self, config, tensors) -> None:
        write_folder(self.folder, config, tensors)

    def read(self) -> None:
        checkpoint = open_checkpoint(self.folder)
        try:
            plan = make_plan(self.folder, checkpoint)
            output = plan.outputs[-1]
            checkpoint.rows(output.source, slice(0, 1))
        finally:
            checkpoint.close()


class Config(Target):
    def step(self, rng: random.Random) -> None:
        path = self.folder / "config.json"
        self.text = getattr(self, "text", path.read_bytes())
        new = (
            mutate_bytes(self.text, rng)
            if rng.random() < 0.3
            else json.dumps(mutate_json(json.loads(self.text), rng)).encode()
        )
        path.write_bytes(new)
        self.read()


class Index(Target):
    def build(self, config, tensors) -> None:
        write_folder(self.folder, config, tensors, shards=2)

    def step(self, rng: random.Random) -> None:
        path = self.folder / "model.safetensors.index.json"
        self.text = getattr(self, "text", path.read_bytes())
        new = (
            mutate_bytes(self.text, rng)
            if rng.random() < 0.3
            else json.dumps(mutate_json(json.loads(self.text), rng)).encode()
        )
        path.write_bytes(new)
        self.read()


class Safetensors(Target):
    def step(self, rng: random.Random) -> None:
        path = self.folder / "model.safetensors"
        self.data = getattr(self, "data", path.read_bytes())
        length = struct.unpack_from("<Q", self.data)[0]
        text = self.data[8 : 8 + length]
        if rng.random() < 0.3:
            text = mutate_bytes(text, rng)
        else:
            text = json.dumps(mutate_json(json.loads(text), rng)).encode()
        announced = len(text) if rng.random() < 0.9 else rng.choice(NUMBERS)
        tail = self.data[8 + length :]
        with open(path, "wb") as file:
            file.write(
                struct.pack("<Q", announced) + text + (tail if rng.random() < 0.9 else tail[: rng.randrange(999)])
            )
        self.read()


class Pickle(Target):
    def build(self, config, tensors) -> None:
        write_folder(self.folder, config, tensors, torch=True)
        with zipfile.ZipFile(self.folder / "pytorch_model.bin") as archive:
            self.pickle = archive.read("archive/data.pkl")
            self.sizes = {i.filename: i.file_size for i in archive.infolist()}

    def step(self, rng: random.Random) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", mutate_bytes(self.pickle, rng))
            for name, size in self.sizes.items():
                if name.startswith("archive/data/"):
                    archive.writestr(name, bytes(size) if size < 1 << 16 else bytes(1 << 10))
        data = buffer.getvalue()
        if rng.random() < 0.2:
            data = mutate_bytes(data[-4096:], rng)
        (self.folder / "pytorch_model.bin").write_bytes(data)
        self.read()


class Gguf(Target):
    def build(self, config, tensors) -> None:
        import gguf
        import gguf_files

        write_folder(self.folder, config, tensors)
        gguf_files.write(self.folder / "m.gguf", self.folder, gguf.GGMLQuantizationType.F16)
        data = (self.folder / "m.gguf").read_bytes()
        self.header = 1 << 13
        self.data = data

    def step(self, rng: random.Random) -> None:
        data = mutate_bytes(self.data[: self.header], rng) + self.data[self.header :]
        (self.folder / "m.gguf").write_bytes(data)
        file = GgufFile(self.folder / "m.gguf")
        checkpoint = GgufCheckpoint(file)
        plan = plan_of(read_config(file, checkpoint), checkpoint)
        output = plan.outputs[-1]
        checkpoint.encode_rows(output.source, slice(0, 1), "F32")
        if file.get("tokenizer.ggml.tokens") is not None:
            read_tokenizer(file)


class SentencePiece(Target):
    """A small model with a normalisation table, as Llama 2 and ChatGLM publish it."""

    def build(self, config, tensors) -> None:
        self.folder.mkdir()
        (self.folder / "config.json").write_text(json.dumps(config))
        self.names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "a", "b", "ab"]
        self.types = [2, 3, 3, *[6] * 256, 1, 1, 1]
        self.units = [0] * 1024  # a double array that replaces "a" by "b"
        self.units[0] = 256 << 10
        self.units[256 ^ ord("a")] = ord("a") | 0x100 | (512 ^ 256 ^ ord("a")) << 10
        self.units[512] = 1 << 31

    def step(self, rng: random.Random) -> None:
        names, types, units = [*self.names], [*self.types], [*self.units]
        scores = [-float(i) for i in range(len(names))]
        texts, kind, at = b"b\0c\0", rng.randrange(5), rng.randrange(len(names))
        if kind == 0:
            names[at] = rng.choice(["", "<0xFF>", "\0", "a" * 5000, "\u2581", names[0]])
        elif kind == 1:
            types[at] = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 1 << 31, (1 << 64) - 1])
            scores[at] = rng.choice([float("nan"), float("inf"), -1e38, 0.0])
        elif kind == 2:
            units[rng.choice([0, 256 ^ ord("a"), 512, rng.randrange(1024)])] = rng.getrandbits(32)
        elif kind == 3:
            texts = rng.choice([b"", b"b", b"\xff\0", b"b" * 4096])
        table = struct.pack("<I", rng.choice([*[4096] * 40, *NUMBERS]) & 0xFFFFFFFF)
        table += struct.pack("<1024I", *units) + texts
        data = model_proto(names, scores, types, add_dummy_prefix=True, remove_extra_whitespaces=False)
        data += _field(3, _field(2, table))
        (self.folder / "tokenizer.model").write_bytes(mutate_bytes(data, rng) if kind == 4 else data)
        load_tokenizer(self.folder)


class TokenizerJson(Target):
    def build(self, config, tensors) -> None:
        self.folder.mkdir()
        (self.folder / "config.json").write_text(json.dumps(config))
        vocab = dict(_BYTES)
        added = [{"id": 258, "content": "<|end|>", "special": True}, {"id": 259, "content": "<gene>", "special": False}]
        self.document = {
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": vocab | {"ab": 256, "abc": 257}, "merges": ["a b", "ab c"]},
        }

    def step(self, rng: random.Random) -> None:
        text = json.dumps(mutate_json(self.document, rng)).encode()
        (self.folder / "tokenizer.json").write_bytes(mutate_bytes(text, rng) if rng.random() < 0.3 else text)
        load_tokenizer(self.folder)


TARGETS = {
    "config": Config,
    "index": Index,
    "safetensors": Safetensors,
    "pickle": Pickle,
    "gguf": Gguf,
    "sentencepiece": SentencePiece,
    "tokenizer-json": TokenizerJson,
}


def main() -> int:
    name, rounds, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    refused, longest = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](pathlib.Path(folder))
        for i in range(rounds):
            begin = time.process_time()  # another program's work is no fault of the reader
            try:
                target.step(random.Random(f"{seed} {i}"))
            except (ConversionError, OSError) as error:
                refused += 1
                if "\n" in str(error) or len(str(error)) > 4000:
                    print(f"{name}, seed {seed}, round {i}: no line: {str(error)[:500]!r}")
                    return 1
            except BaseException:
                print(f"{name}, seed {seed}, round {i}:")
                traceback.print_exc(file=sys.stdout)
                return 1
            took = time.process_time() - begin
            longest = max(longest, took)
            if took > 2:
                print(f"{name}, seed {seed}, round {i}: {took:.1f} s")
                return 1
    print(f"{name}: {rounds} files, {refused} refused, {longest:.2f} s at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
