"""A model that writes the mark of a turn's end as text: its tokenizer has no token for it."""

import json
import os
import pathlib
import struct
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ["DLLAMA_PROGRAM"]
MODEL, TOKENIZER = ROOT / "models/demo/demo-q40.m", ROOT / "models/demo/demo.t"
SO, HAPPY = b" so", b" happy"  # two tokens in a row of the demo's answer


def with_pieces(tokenizer: bytes, changes: dict[bytes, bytes]) -> bytes:
    """The .t file (docs/file-format.md) with other texts of some tokens, without the merges that make or take them."""
    header = struct.unpack_from("<i", tokenizer, 4)[0]
    pairs = dict(struct.iter_unpack("<ii", tokenizer[8:header]))
    at = header + pairs.get(7, 0) + 4 * pairs.get(9, 0)
    new, vocab = tokenizer[:at], []
    for _ in range(pairs[1]):
        score, length = struct.unpack_from("<fi", tokenizer, at)
        vocab.append(tokenizer[at + 8 : at + 8 + length])
        at += 8 + length
        piece = changes.get(vocab[-1], vocab[-1])
        new += struct.pack("<fi", score, len(piece)) + piece
    magic, length = struct.unpack_from("<Ii", tokenizer, at)
    document = json.loads(tokenizer[at + 8 : at + 8 + length])
    merges = [
        (left, right)
        for left, right in struct.iter_unpack("<II", tokenizer[at + 8 + length :])
        if not {vocab[left], vocab[right], vocab[left] + vocab[right]} & changes.keys()
    ]
    text = json.dumps(document | {"n_merges": len(merges)}).encode()
    return new + struct.pack("<Ii", magic, len(text)) + text + b"".join(struct.pack("<II", *pair) for pair in merges)


def chat(tokenizer: pathlib.Path) -> str:
    command = [PROGRAM, "chat", "--model", MODEL, "--tokenizer", tokenizer, "--chat-template", "chatml"]
    command += ["--system", "", "--temperature", "0", "--max-tokens", "30"]
    result = subprocess.run(
        command, input="Tell me a story about a cat.\n", capture_output=True, timeout=120, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_answer_ends_at_a_stop_text_that_is_no_token(tmp_path):
    assert "was so happy that" in chat(TOKENIZER)
    writes_the_mark = tmp_path / "writes.t"
    writes_the_mark.write_bytes(with_pieces(TOKENIZER.read_bytes(), {SO: b" <|im_", HAPPY: b"end|> more"}))
    said = chat(writes_the_mark)
    # Neither the mark, half of which came with another token, nor what follows it is shown.
    assert "She was" in said
    assert "im_" not in said and "more" not in said and " that" not in said, said
