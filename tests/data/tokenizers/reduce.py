#!/usr/bin/env python3
"""Makes the small tokenizers of this folder of the published ones: reduce.py PUBLISHED

A token is kept if its bytes occur in a text that is encoded here, since no other can be a step of a merge or a part of
a segmentation of that text: the ids are those of the whole vocabulary. Ids that are left out stay empty. PUBLISHED
holds a folder a model, with the publisher's files and encodings.json: [[text, ids], ...] by the publisher's code."""

import base64
import json
import pathlib
import shutil
import struct
import sys
import unicodedata

HERE = pathlib.Path(__file__).resolve().parent


def encodings(folder: pathlib.Path) -> list[str]:
    texts = []
    for path in sorted(folder.glob("*encodings.json")):
        texts += [text for text, _ in json.loads(path.read_text())]
    for path in sorted(folder.glob("cases-*.json")):
        texts += [case["text"] for case in json.loads(path.read_text())["cases"]]
    return texts


def substrings_of(texts: list[bytes], longest: int) -> set[bytes]:
    return {text[i : i + n] for text in texts for i in range(len(text)) for n in range(1, longest + 1)}


def reduce_tiktoken(source: pathlib.Path, target: pathlib.Path) -> None:
    tokens = [line.split() for line in (source / "tokenizer.model").read_text().splitlines()]
    known = substrings_of([text.encode() for text in encodings(source)], 64)
    kept = [(text, number) for text, number in tokens if len(b := base64.b64decode(text)) == 1 or b in known]
    (target / "tokenizer.model").write_text("".join(f"{text} {number}\n" for text, number in kept))


def printable_bytes() -> dict[str, int]:
    """GPT-2 writes a byte as itself where that prints, the others as U+0100 and up."""
    own = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    rest = [b for b in range(256) if b not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(rest)}


def reduce_gpt2(source: pathlib.Path, target: pathlib.Path) -> None:
    byte_of = printable_bytes()
    texts = encodings(source)
    known = substrings_of([t.encode() for text in texts for t in (text, unicodedata.normalize("NFC", text))], 64)

    def is_kept(token: str) -> bool:
        return len(token) == 1 or bytes(byte_of[c] for c in token) in known

    vocab = json.loads((source / "vocab.json").read_text())
    kept = {token: number for token, number in vocab.items() if is_kept(token)}
    (target / "vocab.json").write_text(json.dumps(kept, indent=0, ensure_ascii=False) + "\n")
    merges = (source / "merges.txt").read_text().splitlines()
    pairs = [line for line in merges if " " in line and not line.startswith("#version")]
    lines = [line for line in pairs if is_kept(line.replace(" ", ""))]
    (target / "merges.txt").write_text("\n".join(lines) + "\n")


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def as_varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def fields(data: bytes):
    """(number, value) of each protobuf field; fixed numbers and strings as bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if wire == 2 else ({5: 4, 1: 8}[wire], at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def reduce_sentencepiece(source: pathlib.Path, target: pathlib.Path, name: str) -> None:
    """Field 200 of a kept piece, which the format leaves to its users, is the piece's id in the whole model."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(source / name))
    texts = encodings(source)
    shown = ["".join(processor.encode_as_pieces(text)) for text in texts] + [t.replace(" ", "\u2581") for t in texts]
    known = substrings_of([text.encode() for text in shown], 96)
    pieces, rest = [], b""
    for number, value in fields((source / name).read_bytes()):
        if number == 1:
            parts = dict(fields(value))
            pieces.append((value, parts[1], struct.unpack("<f", parts.get(2, b"\0\0\0\0"))[0], parts.get(3, 1)))
        else:
            rest += as_varint(number << 3 | 2) + as_varint(len(value)) + value
    normal = [score for _, _, score, kind in pieces if kind == 1]
    # The worst piece says what an unknown character costs, the best what one that users define does.
    ends = {min(normal), max(normal)}
    out = b""
    for i, (value, text, score, kind) in enumerate(pieces):
        if kind != 1 or text in known or text[:1] in (b"<", b"[") or score in ends:
            value += as_varint(200 << 3) + as_varint(i)
            out += b"\x0a" + as_varint(len(value)) + value
    (target / name).write_bytes(out + rest)


def main(published: pathlib.Path) -> None:
    for name in ("glm-4-9b-chat", "glm-4.5", "llama3", "qwen2", "llama2", "chatglm3-6b", "chatglm-6b"):
        source, target = published / name, HERE / name
        target.mkdir(exist_ok=True)
        for pattern in ("*encodings.json", "cases-*.json", "tokenizer_config.json", "added_tokens.json"):
            for path in source.glob(pattern):
                shutil.copyfile(path, target / path.name)
        if (source / "vocab.json").exists():
            reduce_gpt2(source, target)
        elif name in ("glm-4-9b-chat", "llama3"):
            reduce_tiktoken(source, target)
        elif name != "glm-4.5":
            reduce_sentencepiece(source, target, "ice_text.model" if name == "chatglm-6b" else "tokenizer.model")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
