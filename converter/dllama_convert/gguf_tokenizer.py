"""The tokenizer in a GGUF file as ours."""

from gguf import TokenType

from . import ConversionError
from .chat_formats import class_format
from .gguf_checkpoint import GgufFile, damage_refused
from .gguf_config import eos_ids
from .sentencepiece_proto import model_proto
from .tokenizer_file import Tokenizer
from .tokenizers import CL100K_PATTERN, GPT2_PATTERN, QWEN2_PATTERN, fill_vocab, raw_bytes

# How text is cut before merging, by tokenizer.ggml.pre: pattern, normalizer, whether whole pieces skip merging.
_PRE = {
    "glm4": (CL100K_PATTERN, "", True),
    "chatglm-bpe": (CL100K_PATTERN, "", True),
    "llama-bpe": (CL100K_PATTERN, "", True),
    "llama3": (CL100K_PATTERN, "", True),
    "llama-v3": (CL100K_PATTERN, "", True),
    "qwen2": (QWEN2_PATTERN, "nfc", False),
    "gpt-2": (GPT2_PATTERN, "", False),
}


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """Raises ConversionError if there is no tokenizer, or one that is not supported."""
    with damage_refused(file.path):
        return _read_tokenizer(file)


def _read_tokenizer(file: GgufFile) -> Tokenizer:
    tokens = file.need("tokenizer.ggml.tokens")
    types = file.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
    while types and types[-1] == TokenType.UNUSED:  # vocabularies are padded to the size of the embedding
        types, tokens = types[:-1], tokens[: len(types) - 1]
    kind = file.need("tokenizer.ggml.model")
    if kind == "gpt2":
        t = _byte_level(file, tokens, types)
    elif kind == "llama":
        t = _sentencepiece(file, tokens, types)
    else:
        raise ConversionError(f"{file.path}: tokenizer {kind!r} is not supported (gpt2, llama)")
    t.eos_ids = eos_ids(file)
    ids = {text: i for i, text, _ in t.special}
    sop = "<sop>" if "<sop>" in ids else "sop"
    if file.architecture == "chatglm" and "[gMASK]" in ids and sop in ids:
        t.prefix_ids = [ids["[gMASK]"], ids[sop]]
    elif file.architecture not in ("glm4", "glm4moe"):  # GLM has no bos; some files name one all the same
        t.bos_id = file.get("tokenizer.ggml.bos_token_id", -1)
        default = kind == "llama" or file.get("tokenizer.ggml.pre") in ("llama-bpe", "llama3", "llama-v3")
        t.add_bos = t.bos_id >= 0 and bool(file.get("tokenizer.ggml.add_bos_token", default))
    t.chat_template = file.get("tokenizer.chat_template", "")
    architecture = "ChatGLMModel" if file.architecture == "chatglm" else ""
    t.chat_format = class_format({"architectures": [architecture]}, t)
    for name in ("bos", "eos", "unknown", "padding"):
        i = file.get(f"tokenizer.ggml.{name}_token_id", -1)
        if isinstance(i, int) and 0 <= i < len(tokens):
            t.template_tokens[f"{name[:3]}_token"] = tokens[i]
    return t


def _special(tokens: list[str], types: list[int]) -> dict[int, tuple[str, bool]]:
    marks = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    return {
        i: (text, kind != TokenType.USER_DEFINED)
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in marks
    }


def _byte_level(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    pre = file.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE:
        raise ConversionError(f"{file.path}: pre-tokenizer {pre!r} is not supported ({', '.join(_PRE)})")
    special = _special(tokens, types)
    plain = {i: raw_bytes(token) for i, token in enumerate(tokens) if i not in special and types[i] != TokenType.UNUSED}
    t = Tokenizer("bpe", fill_vocab(plain, special))
    pattern, t.normalizer, t.ignore_merges = _PRE[pre]
    t.patterns = [pattern]
    t.special = [(i, text, is_special) for i, (text, is_special) in special.items()]
    ids = {token: i for i, token in enumerate(tokens)}
    for merge in file.get("tokenizer.ggml.merges", []):
        left, right = merge.split(" ")
        if left not in ids or right not in ids:
            raise ConversionError(f"{file.path}: merge {merge!r} is of tokens that are not in the vocabulary")
        t.merges.append((ids[left], ids[right]))
    return t


def _sentencepiece(file: GgufFile, tokens: list[str], types: list[int]) -> Tokenizer:
    scores = [float(score) for score in file.need("tokenizer.ggml.scores")][: len(tokens)]
    special = _special(tokens, types)
    plain = {
        i: bytes([int(token[3:5], 16)]) if types[i] == TokenType.BYTE else token.replace("\u2581", " ").encode()
        for i, token in enumerate(tokens)
        if i not in special and types[i] != TokenType.UNUSED
    }
    # Tokens that the checkpoint added behind its sentencepiece model: roles and the like.
    size = max(plain) + 1
    t = Tokenizer("sentencepiece", fill_vocab(plain, special))
    t.scores = scores[:size] + [0.0] * (len(tokens) - size)
    t.special = [(i, text, is_special) for i, (text, is_special) in special.items()]
    t.model = model_proto(
        tokens[:size],
        scores,
        types,
        add_dummy_prefix=bool(file.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_whitespaces=bool(file.get("tokenizer.ggml.remove_extra_whitespaces", False)),
    )
    return t
