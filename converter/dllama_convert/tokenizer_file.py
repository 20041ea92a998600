"""Writes .t files (docs/file-format.md)."""

import dataclasses
import json
import pathlib
import struct

from .model_file import write_atomically

MAGIC = 0x567124
TRAILER_MAGIC = 0x4A544C44


@dataclasses.dataclass
class Tokenizer:
    kind: str  # "bpe" or "sentencepiece"
    vocab: list[bytes]  # one entry an id
    scores: list[float] = dataclasses.field(default_factory=list)  # empty: minus the id
    patterns: list[str] = dataclasses.field(default_factory=list)
    normalizer: str = ""
    ignore_merges: bool = False
    merges: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    special: list[tuple[int, str, bool]] = dataclasses.field(default_factory=list)
    prefix_ids: list[int] = dataclasses.field(default_factory=list)
    suffix_ids: list[int] = dataclasses.field(default_factory=list)
    text_rules: str = ""
    chat_format: str = ""
    chat_format_reason: str = ""  # why it is none although there is a template
    chat_format_compared: bool = False  # its prompts equal the template's
    chat_template: str = ""
    # bos_token and the like as templates call them; not stored.
    template_tokens: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)
    bos_id: int = -1
    add_bos: bool = False
    eos_ids: list[int] = dataclasses.field(default_factory=list)
    model: bytes = b""


def write_tokenizer(path: pathlib.Path, t: Tokenizer) -> None:
    template = t.chat_template.encode()
    pairs = [(3, t.bos_id), (0, 1), (1, len(t.vocab)), (2, max(len(piece) for piece in t.vocab))]
    if template:
        pairs.append((7, len(template)))
    pairs += [(9, len(t.eos_ids)), (10, int(t.add_bos))]
    document = {
        "format": 1,
        "kind": t.kind,
        "pattern": t.patterns[0] if len(t.patterns) == 1 else t.patterns,
        "normalizer": t.normalizer,
        "ignore_merges": t.ignore_merges,
        "n_merges": len(t.merges),
        "model_bytes": len(t.model),
        "special": [list(entry) for entry in t.special],
        "prefix_ids": t.prefix_ids,
        "suffix_ids": t.suffix_ids,
        "text_rules": t.text_rules,
        "chat_format": t.chat_format,
    }
    if t.chat_format_reason:
        document["chat_format_reason"] = t.chat_format_reason
    if t.chat_format_compared:
        document["chat_format_compared"] = True
    text = json.dumps(document, ensure_ascii=False).encode()

    def write(file) -> None:
        file.write(struct.pack("<Ii", MAGIC, 8 + 8 * len(pairs)))
        for pair in pairs:
            file.write(struct.pack("<ii", *pair))
        file.write(template)
        file.write(struct.pack(f"<{len(t.eos_ids)}i", *t.eos_ids))
        for i, piece in enumerate(t.vocab):
            file.write(struct.pack("<fi", t.scores[i] if t.scores else -float(i), len(piece)) + piece)
        file.write(struct.pack("<Ii", TRAILER_MAGIC, len(text)) + text)
        for pair in t.merges:
            file.write(struct.pack("<II", *pair))
        file.write(t.model)

    write_atomically(path, write)
