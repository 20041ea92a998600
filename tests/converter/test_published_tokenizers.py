"""Published tokenizers against encodings recorded from the publishers' own code. The files are large and lie beside the
checkout (DLLAMA_SHARED names another place): these tests skip where they are absent."""

import json
import shutil
import unicodedata

import pytest
import sentencepiece
from tokenizer_tools import (
    SHARED,
    TEXTS,
    converted_tokenizer,
    end_ids,
    engine,
    trailer,
    with_white_space,
    with_white_space_pieces,
)

# Folder: chat format (that of the models without a template), ids around a prompt, ids that end an answer.
EXPECTED = {
    "chatglm-6b": ("chatglm", [], [130001, 130004], {130005}),
    "chatglm3-6b": ("chatglm3", [64790, 64792], [], {2, 64795, 64797}),
    "glm-4-9b-chat": ("glm-4-9b-chat", [151331, 151333], [], {151329, 151336, 151338}),
    "llama2": ("", [1], [], {2}),
    "llama3": ("", [128000], [], {128001}),
    "qwen2": ("", [], [], {151645}),
    "qwen3": ("", [], [], {151645}),
    "glm-4.5": ("", [], [], set()),
}


def published(name: str, folder):
    """The files of a publisher's folder; those that several models share are kept once."""
    source = SHARED / "tokenizers"
    if not source.is_dir():
        pytest.skip("the folder ../shared with the published tokenizers is absent")
    folder.mkdir()
    files = [path for path in (source / name).iterdir() if "encodings" not in path.name]
    if name == "qwen3":
        files += [source / "qwen2" / "vocab.json", source / "qwen2" / "merges.txt"]
    if name == "glm-4.5":
        added = json.loads((source / name / "added_tokens.json").read_text(encoding="utf-8"))["tokens"]
        (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
        files = [source / "glm-4-9b-chat" / "tokenizer.model"]
    for path in files:
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.mark.parametrize("name", EXPECTED)
def test_encodings(name, tmp_path):
    file = converted_tokenizer(published(name, tmp_path / "model"))
    recorded = {"qwen3": "qwen2", "glm-4.5": "glm-4-9b-chat"}.get(name, name)
    path = next((SHARED / "tokenizers" / recorded).glob("*encodings.json"))
    cases = json.loads(path.read_text(encoding="utf-8"))
    assert len(cases) > 100
    # What is recorded for ChatGLM-6B is sentencepiece alone, without the model's own rules for white space.
    flags = ["--without-rules"] if name == "chatglm-6b" else []
    texts = [text for text, _ in cases]
    wrong = [
        text
        for (text, ids), actual in zip(cases, engine(file, texts, *flags), strict=True)
        # Of several equally good ways through 300 equal letters a sentencepiece library takes the one it likes.
        if actual["ids"] != ids and not (name == "chatglm-6b" and text == "x" * 300)
    ]
    assert wrong == []

    chat, prefix, suffix, ends = EXPECTED[name]
    assert trailer(file)["chat_format"] == chat
    assert engine(file, [""])[0]["prompt"] == prefix + suffix
    assert end_ids(file) == ends


@pytest.mark.parametrize("name", EXPECTED)
def test_text_comes_back(name, tmp_path):
    file = converted_tokenizer(published(name, tmp_path / "model"))
    recorded = {"qwen3": "qwen2", "glm-4.5": "glm-4-9b-chat"}.get(name, name)
    path = next((SHARED / "tokenizers" / recorded).glob("*encodings.json"))
    texts = [text for text, _ in json.loads(path.read_text(encoding="utf-8"))]
    if name == "chatglm-6b":
        # Its sentencepiece model normalises: what came back once comes back unchanged from then on.
        texts = [actual["back"] for actual in engine(file, texts)]
    expected = [unicodedata.normalize("NFC", text) for text in texts] if name.startswith("qwen") else texts
    assert [actual["back"] for actual in engine(file, texts)] == expected


def test_white_space_of_the_original_chatglm(tmp_path):
    folder = published("chatglm-6b", tmp_path / "model")
    file = converted_tokenizer(folder)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "ice_text.model"))
    texts = [text for text in TEXTS if "xxx" not in text]  # equally good cuts, as above
    for text, actual in zip(texts, engine(file, texts), strict=True):
        assert actual["ids"] == reference.encode(with_white_space_pieces(text)), text
        assert actual["back"] == with_white_space(reference.decode(actual["ids"])), text
