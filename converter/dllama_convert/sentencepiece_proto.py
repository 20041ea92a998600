"""Sentencepiece models made of the vocabularies that other files hold."""

import struct

# Types of pieces.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def model_proto(tokens: list[str], scores: list[float], types: list[int], **normalizer: bool) -> bytes:
    """A sentencepiece ModelProto (sentencepiece_model.proto): 1 pieces {1 piece, 2 score, 3 type}, 2 trainer_spec
    {3 model_type, 35 byte_fallback}, 3 normalizer_spec {1 name, 3 add_dummy_prefix, 4 remove_extra_whitespaces}. GGUF
    has sentencepiece's piece types; its own llama tokenizers are all of sentencepiece's BPE."""
    message = b""
    for token, score, kind in zip(tokens, scores, types, strict=False):
        message += _field(1, _field(1, token.encode()) + b"\x15" + struct.pack("<f", score) + _field(3, int(kind)))
    byte_fallback = int(BYTE in types)
    message += _field(2, _field(3, 2) + _field(35, byte_fallback))
    dummy, extra = normalizer["add_dummy_prefix"], normalizer["remove_extra_whitespaces"]
    return message + _field(3, _field(1, b"identity") + _field(3, int(dummy)) + _field(4, int(extra)))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
