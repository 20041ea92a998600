"""Tokenizers as their publishers ship them: tokenizer.json, tiktoken, vocab.json + merges.txt, sentencepiece."""

import base64
import json
import pathlib

from . import ConversionError
from .chat_formats import class_format
from .checkpoint import read_json
from .model_names import class_of, text_fields
from .sentencepiece_json import SPACE, pieces_of
from .sentencepiece_proto import BYTE, CONTROL, UNKNOWN
from .tokenizer_file import Tokenizer

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# GLM-4's and Llama 3's: the same.
CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _printable_bytes() -> dict[str, int]:
    """GPT-2's alphabet: every byte as a printable character."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in kept}
    for i, b in enumerate(b for b in range(256) if b not in kept):
        table[chr(256 + i)] = b
    return table


_BYTES = _printable_bytes()


def raw_bytes(piece: str) -> bytes:
    try:
        return bytes(_BYTES[c] for c in piece)
    except KeyError as error:
        raise ConversionError(f"token {piece[:100]!r} is not byte-level: {error} is no byte") from error


class Folder:
    """A tokenizer's folder and the special tokens its configuration files name."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.config = self._optional("tokenizer_config.json")
        self.model_config = model_fields(self._optional("config.json"))
        self.generation = self._optional("generation_config.json")

    def _optional(self, name: str) -> dict:
        return read_json(self.path / name) if (self.path / name).exists() else {}

    def special(self) -> dict[int, tuple[str, bool]]:
        found: dict[int, tuple[str, bool]] = {}
        added = self._optional("added_tokens.json")
        for text, i in added.items():
            found[int(i)] = (text, _is_marker(text))
        for i, entry in self.config.get("added_tokens_decoder", {}).items():
            if isinstance(entry, dict):
                found[int(i)] = (entry["content"], bool(entry.get("special", True)))
        return found

    def template(self) -> str:
        if (self.path / "chat_template.jinja").exists():
            return (self.path / "chat_template.jinja").read_text(encoding="utf-8")
        template = self.config.get("chat_template") or ""
        if isinstance(template, list):  # several named ones
            template = next((t["template"] for t in template if t["name"] == "default"), template[0]["template"])
        return template

    def eos_ids(self, id_of) -> list[int]:
        """generation_config.json's, else config.json's, else the eos token's."""
        for source in (self.generation, self.model_config):
            ids = source.get("eos_token_id")
            if ids is not None:
                return [int(i) for i in ids] if isinstance(ids, list) else [int(ids)]
        text = self.token("eos_token")
        return [id_of(text)] if text is not None and id_of(text) is not None else []

    def token(self, key: str) -> str | None:
        value = self.config.get(key)
        return value.get("content") if isinstance(value, dict) else value


def model_fields(config: dict) -> dict:
    """config.json's fields with the class that the converter takes the model for (model_names.py)."""
    fields = text_fields(config)
    name = class_of(fields)
    return fields | {"architectures": [name]} if name else fields


def _is_marker(text: str) -> bool:
    """Tags that answers contain (<think>, <tool_call>, ...) are printed; [gMASK], <sop>, <|user|> are not."""
    return text.startswith(("<|", "[")) or text in ("<sop>", "<eop>")


# Vocabularies are padded to a multiple of something, and places are kept for tokens to come.
_MAX_HOLES = 1 << 16


def fill_vocab(pieces: dict[int, bytes], special: dict[int, tuple[str, bool]]) -> list[bytes]:
    for i, (text, _) in special.items():
        pieces[i] = text.encode()
    if not all(type(i) is int for i in pieces) or min(pieces, default=-1) < 0:
        raise ConversionError("a token's id is no number, or there are no tokens")
    size = max(pieces) + 1
    if size > len(pieces) + _MAX_HOLES:
        raise ConversionError(f"token id {size - 1} among {len(pieces)} tokens: at most {_MAX_HOLES} ids may be unused")
    return [pieces.get(i) or f"<|unused_{i}|>".encode() for i in range(size)]


def has_tokenizer(path: pathlib.Path) -> bool:
    return any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "ice_text.model", "vocab.json"))


def load_tokenizer(path: pathlib.Path) -> Tokenizer:
    """The tokenizer in a folder. Raises ConversionError, naming what is not supported."""
    if not path.is_dir():
        raise ConversionError(f"{path}: there is no such folder")
    try:
        return _load(Folder(path))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path}: a tokenizer file is damaged or of an unknown form: {error!r}") from error


def _load(folder: Folder) -> Tokenizer:
    path = folder.path
    if (path / "tokenizer.json").exists() and not _repeats_sentencepiece(path):
        t = _from_json(folder)
    elif (path / "vocab.json").exists() and (path / "merges.txt").exists():
        t = _from_vocab_and_merges(folder)
    elif (path / "ice_text.model").exists():
        t = _from_sentencepiece(folder, path / "ice_text.model")
    elif (path / "tokenizer.model").exists():
        with open(path / "tokenizer.model", "rb") as file:
            first = file.readline(4096)
        tiktoken = _is_tiktoken_line(first)
        t = _from_tiktoken(folder) if tiktoken else _from_sentencepiece(folder, path / "tokenizer.model")
    else:
        raise ConversionError(f"{path}: there is no tokenizer.json, tokenizer.model, ice_text.model or vocab.json")
    t.chat_template = folder.template()
    t.chat_format = class_format(folder.model_config, t)
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    t.template_tokens = {name: text for name in names if isinstance(text := folder.token(name), str)}
    return t


def _repeats_sentencepiece(path: pathlib.Path) -> bool:
    """Llama 2's tokenizer.json imitates the sentencepiece model beside it."""
    if not (path / "tokenizer.model").exists():
        return False
    return bool(read_json(path / "tokenizer.json")["model"].get("byte_fallback"))


def _byte_level(folder: Folder, pieces: dict[int, bytes], special: dict[int, tuple[str, bool]]) -> Tokenizer:
    vocab = fill_vocab(pieces, special)
    ids = {text: i for i, (text, _) in special.items()}

    def id_of(text: str) -> int | None:
        if text in ids:
            return ids[text]
        raw = text.encode()
        return vocab.index(raw) if raw in vocab else None

    t = Tokenizer("bpe", vocab, special=[(i, text, is_special) for i, (text, is_special) in sorted(special.items())])
    t.eos_ids = folder.eos_ids(id_of)
    bos = folder.token("bos_token")
    if bos is not None and id_of(bos) is not None:
        t.bos_id = id_of(bos)
        t.add_bos = bool(folder.config.get("add_bos_token", False))
    return t


# ----------------------------------------------------------------------------------------------------- tokenizer.json


def _from_json(folder: Folder) -> Tokenizer:
    path = folder.path / "tokenizer.json"
    document = read_json(path)
    model = document["model"]
    if model.get("type", "BPE") != "BPE":
        raise ConversionError(f"{path}: model type {model['type']} is not supported (BPE)")
    if model.get("byte_fallback"):
        return _from_sentencepiece_json(folder, document)
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ConversionError(f"{path}: {key} = {model[key]!r} is not supported")

    special = folder.special()
    for entry in document.get("added_tokens", []):
        special[entry["id"]] = (entry["content"], bool(entry["special"]))
    pieces = {i: raw_bytes(piece) for piece, i in model["vocab"].items() if i not in special}
    t = _byte_level(folder, pieces, special)
    t.patterns = _patterns(document.get("pre_tokenizer"), path)
    t.normalizer = _normalizer(document.get("normalizer"), path)
    t.ignore_merges = bool(model.get("ignore_merges", False))
    vocab = model["vocab"]
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        t.merges.append((vocab[left], vocab[right]))
    prefix, suffix = _post_processor(document.get("post_processor"), path)
    if prefix == [t.bos_id]:
        t.add_bos = True
    else:
        t.prefix_ids = prefix
        t.add_bos = False
    t.suffix_ids = suffix
    return t


def _normalizer(node: dict | None, path: pathlib.Path) -> str:
    if node is None or (node["type"] == "Sequence" and not node["normalizers"]):
        return ""
    if node["type"] == "NFC":
        return "nfc"
    raise ConversionError(f"{path}: normalizer {node['type']} is not supported (NFC)")


def _patterns(node: dict | None, path: pathlib.Path) -> list[str]:
    """Pre-tokenizers that cut by a pattern and keep all pieces, in turn, then byte-level."""
    if node is None:
        raise ConversionError(f"{path}: there is no pre_tokenizer: only byte-level vocabularies are supported")
    if node["type"] == "Sequence":
        return [pattern for part in node["pretokenizers"] for pattern in _patterns(part, path)]
    if node["type"] == "Split":
        if node["behavior"] != "Isolated" or node.get("invert") or "Regex" not in node["pattern"]:
            raise ConversionError(f"{path}: pre-tokenizer {json.dumps(node)[:120]} is not supported")
        return [node["pattern"]["Regex"]]
    if node["type"] == "ByteLevel":
        if node.get("add_prefix_space"):
            raise ConversionError(f"{path}: add_prefix_space is not supported")
        return [GPT2_PATTERN] if node.get("use_regex", True) else []
    if node["type"] == "Digits":
        return [r"\p{N}|[^\p{N}]+" if node.get("individual_digits") else r"\p{N}+|[^\p{N}]+"]
    raise ConversionError(f"{path}: pre-tokenizer {node['type']} is not supported (Split, ByteLevel, Digits, Sequence)")


def _post_processor(node: dict | None, path: pathlib.Path) -> tuple[list[int], list[int]]:
    """Ids that a template puts before and behind a single text."""
    if node is None or node["type"] == "ByteLevel":
        return [], []
    if node["type"] == "Sequence":
        both = [_post_processor(part, path) for part in node["processors"]]
        return [i for prefix, _ in both for i in prefix], [i for _, suffix in both for i in suffix]
    if node["type"] != "TemplateProcessing":
        raise ConversionError(f"{path}: post-processor {node['type']} is not supported (TemplateProcessing)")
    parts: tuple[list[int], list[int]] = ([], [])
    behind = 0
    for item in node["single"]:
        if "Sequence" in item:
            behind = 1
        else:
            parts[behind].extend(node["special_tokens"][item["SpecialToken"]["id"]]["ids"])
    return parts


# ------------------------------------------------------------------------------------------------------------ tiktoken


def _is_tiktoken_line(line: bytes) -> bool:
    parts = line.split()
    if len(parts) != 2 or not parts[1].isdigit():
        return False
    try:
        base64.b64decode(parts[0], validate=True)
    except ValueError:
        return False
    return True


def _from_tiktoken(folder: Folder) -> Tokenizer:
    pieces: dict[int, bytes] = {}
    path = folder.path / "tokenizer.model"
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        if not _is_tiktoken_line(line):
            raise ConversionError(f"{path}: line {number} is not a token and its rank")
        token, rank = line.split()
        pieces[int(rank)] = base64.b64decode(token)
    t = _byte_level(folder, pieces, folder.special())
    t.patterns = [CL100K_PATTERN]
    # tiktoken takes a piece that is a token whole before it merges.
    t.ignore_merges = True
    t.add_bos = bool(folder.config.get("add_bos_token", t.bos_id >= 0))
    if "ChatGLM4" in str(folder.config.get("tokenizer_class", "")) or "[gMASK]" in {text for _, text, _ in t.special}:
        ids = {text: i for i, text, _ in t.special}
        # GLM-4's own tokenizer puts these before every text; later ones leave it to the template.
        if "[gMASK]" in ids and folder.config.get("auto_map"):
            t.prefix_ids = [ids["[gMASK]"], ids["<sop>"]]
    return t


# --------------------------------------------------------------------------------------------- vocab.json + merges.txt


def _from_vocab_and_merges(folder: Folder) -> Tokenizer:
    name = str(folder.config.get("tokenizer_class", ""))
    if not name.startswith("Qwen2"):
        raise ConversionError(f"{folder.path}: vocab.json of a {name!r} is not supported (Qwen2Tokenizer)")
    vocab = read_json(folder.path / "vocab.json")
    special = folder.special()
    t = _byte_level(folder, {i: raw_bytes(piece) for piece, i in vocab.items()}, special)
    t.patterns = [QWEN2_PATTERN]
    t.normalizer = "nfc"
    lines = (folder.path / "merges.txt").read_text(encoding="utf-8").split("\n")
    for line in lines:
        if line.startswith("#version") or not line:
            continue
        left, right = line.split(" ")
        t.merges.append((vocab[left], vocab[right]))
    return t


# ------------------------------------------------------------------------------------------------------- sentencepiece


def _from_sentencepiece_json(folder: Folder, document: dict) -> Tokenizer:
    path = folder.path / "tokenizer.json"
    pieces, types, scores, proto = pieces_of(document, path)
    marks = {i: (piece, True) for i, piece in enumerate(pieces) if types[i] in (CONTROL, UNKNOWN)}
    added = {entry["id"]: (entry["content"], bool(entry["special"])) for entry in document.get("added_tokens", [])}
    special = marks | folder.special() | added
    plain = {
        i: bytes([int(piece[3:5], 16)]) if types[i] == BYTE else piece.replace(SPACE, " ").encode()
        for i, piece in enumerate(pieces)
    }
    t = Tokenizer("sentencepiece", fill_vocab(plain, special), model=proto)
    t.scores = scores + [0.0] * (len(t.vocab) - len(scores))
    t.special = [(i, text, is_special) for i, (text, is_special) in sorted(special.items())]
    ids = {text: i for i, (text, _) in special.items()}
    t.eos_ids = folder.eos_ids(ids.get)
    t.bos_id = ids.get(folder.token("bos_token") or "<s>", -1)
    t.prefix_ids, t.suffix_ids = _post_processor(document.get("post_processor"), path)
    if document.get("post_processor") is None:
        t.add_bos = bool(folder.config.get("add_bos_token", True)) and t.bos_id >= 0
    elif t.prefix_ids == [t.bos_id]:
        t.prefix_ids, t.add_bos = [], True
    return t


def _sentencepiece_processor():
    """Of a version that looks at a model before it uses it: 0.2.1 and older end in a segmentation fault where a damaged
    normalisation table leads out of its memory."""
    import sentencepiece

    version = [int(part) if part.isdigit() else 0 for part in sentencepiece.__version__.split(".")[:3]]
    if version < [0, 2, 2]:
        found = f"sentencepiece {sentencepiece.__version__}"
        raise ConversionError(f"{found} is not safe with damaged models: pip install 'sentencepiece>=0.2.2'")
    return sentencepiece.SentencePieceProcessor()


def _from_sentencepiece(folder: Folder, path: pathlib.Path) -> Tokenizer:
    model = path.read_bytes()
    processor = _sentencepiece_processor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise ConversionError(f"{path}: not a sentencepiece model: {ascii(str(error)[:300])}") from error
    size = processor.GetPieceSize()
    pieces: dict[int, bytes] = {}
    for i in range(size):
        piece = processor.IdToPiece(i)
        pieces[i] = bytes([int(piece[3:5], 16)]) if processor.IsByte(i) else piece.replace("\u2581", " ").encode()
    marks = (i for i in range(size) if processor.IsControl(i) or processor.IsUnknown(i))
    special = {i: (processor.IdToPiece(i), True) for i in marks} | folder.special()
    v1 = path.name == "ice_text.model"
    if v1:
        for text in ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"):
            special[processor.PieceToId(text)] = (text, True)
    elif "ChatGLM" in str(folder.config.get("tokenizer_class", "")):
        roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
        # ChatGLM2 has no roles; the 64 tokens' places behind the pieces are the same.
        names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"] + (roles if _is_chatglm3(folder) else [])
        special |= {size + i: (text, True) for i, text in enumerate(names)}
    vocab = fill_vocab(pieces, special)
    ids = {text: i for i, (text, _) in special.items()}
    t = Tokenizer("sentencepiece", vocab, model=model)
    t.scores = [processor.GetScore(i) if i < size else 0.0 for i in range(len(vocab))]
    t.special = [(i, text, is_special) for i, (text, is_special) in sorted(special.items())]
    t.eos_ids = folder.eos_ids(lambda text: ids.get(text)) or ([processor.eos_id()] if processor.eos_id() >= 0 else [])
    if v1:
        t.text_rules = "chatglm-6b"
        t.suffix_ids = [ids["[gMASK]"], ids["<sop>"]]
        t.eos_ids = [ids["<eop>"]]
    elif "[gMASK]" in ids:
        t.prefix_ids = [ids["[gMASK]"], ids["sop"]]
        # ChatGLM3's answers end where another role begins.
        roles = [ids[role] for role in ("<|user|>", "<|observation|>") if role in ids]
        t.eos_ids += [i for i in roles if i not in t.eos_ids]
    else:
        t.bos_id = processor.bos_id()
        t.add_bos = bool(folder.config.get("add_bos_token", True)) and t.bos_id >= 0
    return t


def _is_chatglm3(folder: Folder) -> bool:
    """ChatGLM3's tokenizer names its roles in code only; what tells it from ChatGLM2's is its chat template or name."""
    text = json.dumps(folder.config) + str(folder.model_config.get("_name_or_path", "")) + str(folder.path.resolve())
    return "chatglm3" in text.lower() or "<|user|>" in text
