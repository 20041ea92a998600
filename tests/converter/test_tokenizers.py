"""Small tokenizers of every kind, trained here by the libraries that models use: the .t file encodes as they do."""

import base64
import json

import pytest
import sentencepiece
import tokenizers
from dllama_convert.tokenizers import CL100K_PATTERN, QWEN2_PATTERN, raw_bytes
from tokenizer_tools import (
    OWN_TEXTS,
    TEXTS,
    converted_tokenizer,
    engine,
    run_tokenizer_converter,
    trailer,
    with_white_space,
    with_white_space_pieces,
)
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = OWN_TEXTS * 3 + ["the fox and the dog walk through the brown wood", "hello world, hello again"] * 5


def train_byte_level(pattern: str, vocab_size: int = 600) -> tokenizers.Tokenizer:
    t = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    t.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=raw_bytes)
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet))
    return t


def write_json(path, value) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def check(file, expected: list[list[int]], texts=TEXTS, normal=lambda text: text) -> None:
    for text, ids, actual in zip(texts, expected, engine(file, texts), strict=True):
        assert actual["ids"] == ids, text
        assert actual["back"] == normal(text)


def test_tokenizer_json(tmp_path):
    """As GLM-4.5 and Llama 3 publish it: added tokens, some of them printed, and ids put before a text."""
    t = train_byte_level(CL100K_PATTERN)
    plain = [t.encode(text).ids for text in TEXTS]
    t.add_special_tokens(["[gMASK]", "<sop>", "<|user|>", "<|endoftext|>"])
    t.add_tokens(["<think>", "</think>"])
    gmask, sop = t.token_to_id("[gMASK]"), t.token_to_id("<sop>")
    t.post_processor = processors.TemplateProcessing(
        "[gMASK] <sop> $A", special_tokens=[("[gMASK]", gmask), ("<sop>", sop)]
    )
    folder = tmp_path / "model"
    folder.mkdir()
    t.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    write_json(
        folder / "generation_config.json", {"eos_token_id": [t.token_to_id("<|endoftext|>"), t.token_to_id("<|user|>")]}
    )
    (folder / "chat_template.jinja").write_text("[gMASK]<sop>{{ '<|assistant|>' }}<think>{% if x %}/nothink{% endif %}")
    file = converted_tokenizer(folder)
    check(file, plain)
    for text, actual in zip(TEXTS, engine(file, TEXTS), strict=True):
        assert actual["prompt"] == t.encode(text).ids, text
    document = trailer(file)
    assert (document["prefix_ids"], document["chat_format"]) == ([gmask, sop], "")
    assert {text: special for _, text, special in document["special"]} == {
        "[gMASK]": True, "<sop>": True, "<|user|>": True, "<|endoftext|>": True, "<think>": False, "</think>": False,
    }  # fmt: skip


@pytest.mark.parametrize("ignore_merges", [False, True])
def test_tokenizer_json_with_unreachable_token(ignore_merges, tmp_path):
    """With ignore_merges a piece that is in the vocabulary is taken whole, even if no merges lead to it."""
    t = train_byte_level(CL100K_PATTERN)
    document = json.loads(t.to_str())
    document["model"]["ignore_merges"] = ignore_merges
    document["model"]["vocab"]["zyxw"] = len(document["model"]["vocab"])
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "tokenizer.json", document)
    reference = tokenizers.Tokenizer.from_str(json.dumps(document))
    texts = ["zyxw", "zyxwv", *TEXTS]
    assert (len(reference.encode("zyxw").ids) == 1) == ignore_merges
    check(converted_tokenizer(folder), [reference.encode(text).ids for text in texts], texts)


def test_digits_and_byte_level_pattern(tmp_path):
    """Several pre-tokenizers in turn."""
    t = train_byte_level(CL100K_PATTERN)
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    folder = tmp_path / "model"
    folder.mkdir()
    t.save(str(folder / "tokenizer.json"))
    check(converted_tokenizer(folder), [t.encode(text).ids for text in TEXTS])


def test_vocab_and_merges(tmp_path):
    """As Qwen2 publishes it, with NFC."""
    t = train_byte_level(QWEN2_PATTERN)
    t.normalizer = normalizers.NFC()
    folder = tmp_path / "model"
    folder.mkdir()
    t.model.save(str(folder))
    decoder = {str(t.get_vocab_size()): {"content": "<|im_end|>", "special": True}}
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "added_tokens_decoder": decoder}
    write_json(folder / "tokenizer_config.json", config)
    file = converted_tokenizer(folder)
    check(file, [t.encode(text).ids for text in TEXTS], normal=t.normalizer.normalize_str)
    assert trailer(file)["special"] == [[t.get_vocab_size(), "<|im_end|>", True]]


def test_tiktoken(tmp_path):
    """As GLM-4 and Llama 3 publish it: tokens by rank, special tokens in tokenizer_config.json."""
    t = train_byte_level(CL100K_PATTERN)
    ranks = sorted((i, raw_bytes(piece)) for piece, i in t.get_vocab().items())
    folder = tmp_path / "model"
    folder.mkdir()
    lines = (f"{base64.b64encode(piece).decode()} {i}\n" for i, piece in ranks)
    (folder / "tokenizer.model").write_text("".join(lines))
    size = len(ranks)
    # The vocabulary has holes behind the ranks.
    names = {size: "<|endoftext|>", size + 2: "[gMASK]", size + 4: "<sop>", size + 5: "<|assistant|>"}
    decoder = {str(i): {"content": text, "special": True} for i, text in names.items()}
    write_json(
        folder / "tokenizer_config.json", {"added_tokens_decoder": decoder, "auto_map": {"AutoTokenizer": ["x", None]}}
    )
    write_json(folder / "config.json", {"architectures": ["ChatGLMModel"], "eos_token_id": [size]})
    file = converted_tokenizer(folder)
    # Both merge by the id of the merged bytes: the trainer numbers tokens in the order of its merges.
    check(file, [t.encode(text).ids for text in TEXTS])
    document = trailer(file)
    assert (document["prefix_ids"], document["chat_format"]) == ([size + 2, size + 4], "glm-4-9b-chat")
    assert engine(file, ["<sop>"])[0]["prompt"] == [size + 2, size + 4, size + 4]


def train_sentencepiece(folder, name: str, **options) -> sentencepiece.SentencePieceProcessor:
    folder.mkdir()
    corpus = folder / "corpus"
    corpus.write_text(
        "\n".join(line for text in CORPUS for line in text.replace("\0", " ").splitlines()), encoding="utf-8"
    )
    sentencepiece.SentencePieceTrainer.Train(
        input=str(corpus), model_prefix=str(folder / "trained"), minloglevel=2, num_threads=1, **options
    )
    (folder / "trained.model").rename(folder / name)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / name))


LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "vocab_size": 450,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "character_coverage": 0.99,
}


def as_tokenizer_json(reference: sentencepiece.SentencePieceProcessor) -> dict:
    """What transformers makes of a sentencepiece model of Llama 2: every way to make a piece, best pieces first."""
    size = reference.GetPieceSize()
    vocab = {reference.IdToPiece(i): i for i in range(size)}
    merges = []
    for piece in sorted(vocab, key=lambda piece: (-reference.GetScore(vocab[piece]), vocab[piece])):
        if reference.IsByte(vocab[piece]) or reference.IsControl(vocab[piece]) or reference.IsUnknown(vocab[piece]):
            continue
        ways = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        merges += [list(way) for way in sorted(ways, key=lambda way: (vocab[way[0]], vocab[way[1]]))]
    marks = [{"id": i, "content": reference.IdToPiece(i), "special": True} for i in range(3)]
    steps = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    post = {"type": "TemplateProcessing", "single": template, "special_tokens": {"<s>": {"id": "<s>", "ids": [1]}}}
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocab,
        "merges": merges,
    }
    normalizer = {"type": "Sequence", "normalizers": steps}
    return {
        "added_tokens": marks,
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": post,
        "model": model,
    }


@pytest.mark.parametrize("form", ["Prepend", "Metaspace"])
def test_llama_sentencepiece_in_a_tokenizer_json_only(form, tmp_path):
    """As transformers 5 writes Llama 2 and Mistral: the same ids as the sentencepiece model that it was made from."""
    reference = train_sentencepiece(tmp_path / "trained", "tokenizer.model", **LLAMA)
    document = as_tokenizer_json(reference)
    if form == "Metaspace":
        document["normalizer"] = None
        document["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False
        }  # fmt: skip
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "tokenizer.json", document)
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    file = converted_tokenizer(folder)
    texts = [text for text in TEXTS if "<|" not in text and "\0" not in text]
    for text, actual in zip(texts, engine(file, texts), strict=True):
        assert actual["ids"] == reference.EncodeAsIds(text), text


def test_merges_of_no_sentencepiece_model(tmp_path):
    document = as_tokenizer_json(train_sentencepiece(tmp_path / "trained", "tokenizer.model", **LLAMA))
    document["model"]["merges"].append(document["model"]["merges"][0])  # once more, behind all others
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "tokenizer.json", document)
    result = run_tokenizer_converter(folder, tmp_path / "out")
    assert result.returncode == 1 and "its merges are not those of a sentencepiece model" in result.stderr


def test_llama_sentencepiece(tmp_path):
    folder = tmp_path / "model"
    reference = train_sentencepiece(folder, "tokenizer.model", **LLAMA)
    write_json(folder / "tokenizer_config.json", {"chat_template": "{% for m in messages %}[INST]{% endfor %}"})
    # Llama 2's folders hold such a file as well: it imitates the model.
    write_json(folder / "tokenizer.json", {"model": {"type": "BPE", "byte_fallback": True}})
    file = converted_tokenizer(folder)
    expected = [reference.encode(text) for text in TEXTS]
    check(file, expected)
    assert [actual["prompt"] for actual in engine(file, TEXTS[1:6])] == [[1, *ids] for ids in expected[1:6]]
    assert trailer(file)["chat_format"] == ""


ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


@pytest.mark.parametrize(("name", "roles"), [("chatglm2-6b", []), ("chatglm3-6b", ROLES)])
def test_chatglm_2_and_3(name, roles, tmp_path):
    folder = tmp_path / "model"
    reference = train_sentencepiece(folder, "tokenizer.model", **LLAMA)
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "ChatGLMTokenizer", "name_or_path": f"THUDM/{name}"}
    )
    write_json(folder / "config.json", {"architectures": ["ChatGLMModel"], "eos_token_id": 2})
    file = converted_tokenizer(folder)
    expected = [reference.encode(text) for text in TEXTS]
    check(file, expected)
    size = reference.get_piece_size()
    document = trailer(file)
    assert document["chat_format"] == name.removesuffix("-6b")
    names = {text: i for i, text, _ in document["special"]}
    assert [names[text] - size for text in ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *roles]] == list(
        range(5 + len(roles))
    )
    assert document["prefix_ids"] == [names["[gMASK]"], names["sop"]]
    assert engine(file, ["hello"])[0]["prompt"] == [*document["prefix_ids"], *reference.encode("hello")]


def test_original_chatglm(tmp_path):
    """ice_text.model: line feeds, tabs and runs of blanks are pieces, and [gMASK] <sop> go behind a prompt."""
    blanks = [f"<|blank_{n}|>" for n in range(2, 81)]
    own = ["<n>", "<|tab|>", *blanks, "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    folder = tmp_path / "model"
    options = {"model_type": "unigram", "byte_fallback": True, "hard_vocab_limit": False, "user_defined_symbols": own}
    reference = train_sentencepiece(folder, "ice_text.model", vocab_size=600, **options)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "ChatGLMTokenizer"})
    file = converted_tokenizer(folder)

    # Left out: what the library itself makes a token of, and repeated letters, where it has equally good ways to cut
    # and takes another with each version.
    texts = [text for text in TEXTS if not any(part in text for part in ("[gMASK]", "Ⅷ", "xxx", "ababab", "III"))]
    results = engine(file, texts)
    suffix = [reference.piece_to_id(text) for text in ("[gMASK]", "<sop>")]
    for text, actual in zip(texts, results, strict=True):
        assert actual["ids"] == reference.encode(with_white_space_pieces(text)), text
        assert actual["prompt"] == [*actual["ids"], *suffix]
        assert actual["back"] == with_white_space(reference.decode(actual["ids"]))
    # The model normalises (NFKC) and drops single blanks at the ends; all other white space comes back.
    kept = "line\n\n  two blanks,\ttab" + " " * 90 + "end\n"
    assert engine(file, [kept])[0]["back"] == kept
    document = trailer(file)
    assert (document["text_rules"], document["chat_format"]) == ("chatglm-6b", "chatglm")
    assert document["suffix_ids"] == suffix


REFUSED = {
    "wordpiece": ({"model": {"type": "WordPiece"}}, "model type WordPiece is not supported"),
    "byte fallback": ({"model": {"byte_fallback": True}}, "unk_token = None is not in its vocabulary"),
    "subword prefix": ({"model": {"continuing_subword_prefix": "##"}}, "continuing_subword_prefix = '##'"),
    "normalizer": ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase is not supported"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "there is no pre_tokenizer"),
    "pre-tokenizer": ({"pre_tokenizer": {"type": "Metaspace"}}, "pre-tokenizer Metaspace is not supported"),
    "post-processor": (
        {"post_processor": {"type": "BertProcessing"}},
        "post-processor BertProcessing is not supported",
    ),
    "damaged": ({"model": {"merges": [["no", "token"]]}}, "a tokenizer file is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case, tmp_path):
    changes, words = REFUSED[case]
    document = json.loads(train_byte_level(CL100K_PATTERN, 300).to_str())
    document["model"] |= changes.get("model", {})
    document |= {key: value for key, value in changes.items() if key != "model"}
    folder, output = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    write_json(folder / "tokenizer.json", document)
    result = run_tokenizer_converter(folder, output)
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert words in result.stderr
    assert not output.exists()


def test_missing_and_existing_files(tmp_path):
    result = run_tokenizer_converter(tmp_path / "nowhere", tmp_path / "out")
    assert (result.returncode, "nowhere: there is no such folder" in result.stderr) == (1, True)
    folder = tmp_path / "model"
    folder.mkdir()
    result = run_tokenizer_converter(folder, tmp_path / "out")
    assert (result.returncode, "there is no tokenizer.json" in result.stderr) == (1, True)
    train_byte_level(CL100K_PATTERN, 300).save(str(folder / "tokenizer.json"))
    assert run_tokenizer_converter(folder, tmp_path / "out").returncode == 0
    result = run_tokenizer_converter(folder, tmp_path / "out")
    assert (result.returncode, "exists already" in result.stderr) == (1, True)
