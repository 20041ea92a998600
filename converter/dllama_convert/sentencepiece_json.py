"""A tokenizer.json that imitates sentencepiece: BPE over characters with bytes to fall back to, spaces as \u2581. It is
what transformers 5 writes for Llama 2 and Mistral, without the sentencepiece model that it was made from.

Sentencepiece merges the neighbours whose joint piece has the best score, tokenizer.json those that stand first in its
list. Both are the same if the list has every way to make a piece, and the pieces in the order of their scores."""

import pathlib

from . import ConversionError
from .printing import shown
from .sentencepiece_proto import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, model_proto

SPACE = "\u2581"


def pieces_of(document: dict, path: pathlib.Path) -> tuple[list[str], list[int], list[float], bytes]:
    """Pieces, types and scores by id, and the sentencepiece model. Raises ConversionError if they are none."""
    model = document["model"]
    vocab = model["vocab"]
    added = {entry["id"]: entry for entry in document.get("added_tokens", [])}
    size = len(vocab)
    if sorted(vocab.values()) != list(range(size)):
        raise ConversionError(f"{path}: the ids of its vocabulary are not 0 to {size - 1}")
    pieces = sorted(vocab, key=vocab.get)
    rank = _ranks(model, vocab, path)
    types, scores = [], []
    for i, piece in enumerate(pieces):
        if piece == model.get("unk_token"):
            kind = UNKNOWN
        elif i in added:
            kind = CONTROL if added[i]["special"] else USER_DEFINED
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            kind = BYTE
        else:
            kind = NORMAL if len(piece) == 1 or piece in rank else UNUSED
        types.append(kind)
        scores.append(-float(rank.get(piece, len(rank) + i)))
    if types.count(UNKNOWN) != 1:
        raise ConversionError(f"{path}: unk_token = {shown(model.get('unk_token'))} is not in its vocabulary")
    if types.count(BYTE) != 256:
        raise ConversionError(f"{path}: has {types.count(BYTE)} of 256 bytes to fall back to")
    dummy = _adds_space(document, pieces, path)
    proto = model_proto(pieces, scores, types, add_dummy_prefix=dummy, remove_extra_whitespaces=False)
    return pieces, types, scores, proto


def _ranks(model: dict, vocab: dict[str, int], path: pathlib.Path) -> dict[str, int]:
    """Each made piece's place in the order of merging."""
    rank: dict[str, int] = {}
    pairs, last = set(), None
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        piece = left + right
        if piece not in vocab or left not in vocab or right not in vocab:
            raise ConversionError(f"{path}: merge {shown(piece)} is of tokens that are not in the vocabulary")
        if piece != last and piece in rank:
            raise ConversionError(f"{path}: its merges are not those of a sentencepiece model: {shown(piece)} twice")
        rank.setdefault(piece, len(rank))
        pairs.add((left, right))
        last = piece
    for piece in rank:
        for i in range(1, len(piece)):
            pair = piece[:i], piece[i:]
            if pair[0] in vocab and pair[1] in vocab and pair not in pairs:
                raise ConversionError(
                    f"{path}: its merges are not those of a sentencepiece model: {shown(piece)} cannot be made of "
                    f"{shown(pair[0])} and {shown(pair[1])}"
                )
    return rank


def _adds_space(document: dict, pieces: list[str], path: pathlib.Path) -> bool:
    """Whether a space is put before a text, told from the normalizer (Llama's first form) or the pre-tokenizer."""
    normalizer, cutter = document.get("normalizer"), document.get("pre_tokenizer")
    parts = normalizer.get("normalizers", [normalizer]) if normalizer else []
    adds = False
    for part in parts:
        if part["type"] == "Prepend" and part["prepend"] == SPACE:
            adds = True
        elif part["type"] != "Replace" or part["pattern"] != {"String": " "} or part["content"] != SPACE:
            raise ConversionError(f"{path}: normalizer {shown(part)} is not supported with byte_fallback")
    if cutter is None:
        return adds
    if cutter["type"] != "Metaspace" or cutter.get("replacement") != SPACE:
        raise ConversionError(f"{path}: pre-tokenizer {shown(cutter)} is not supported with byte_fallback (Metaspace)")
    if cutter.get("split", True) and any(SPACE in piece[1:] for piece in pieces):
        raise ConversionError(f"{path}: Metaspace with split, and pieces that have spaces inside")
    return (
        adds or cutter.get("prepend_scheme", "always" if cutter.get("add_prefix_space", True) else "never") != "never"
    )
