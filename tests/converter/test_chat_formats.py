"""Chat formats: the converter compares the publisher's template with what the program would write."""

import json
import re
import subprocess

import pytest
from checkpoints import ROOT
from dllama_convert.chat_formats import FORMATS, chat_words, settle_chat_format
from dllama_convert.tokenizer_file import Tokenizer, write_tokenizer
from tokenizer_tools import trailer

CHAT = ROOT / "tests" / "data" / "chat"
CASES = json.loads((CHAT / "detect.json").read_text(encoding="utf-8"))
TOKENS = {
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
    "deepseek": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
}
OTHER_NAMES = {"glm-4.7-flash": "glm-4.7"}


def compared(text: str, tokens: dict[str, str] | None = None) -> Tokenizer:
    t = Tokenizer("bpe", [b"a"], patterns=["a"], chat_template=text, template_tokens=tokens or {})
    settle_chat_format(t)
    return t


def template(name: str) -> str:
    return (CHAT / "templates" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["template"])
def test_published_templates(case, program):
    tokens = TOKENS.get(case["family"].split("-")[0])
    t = compared(template(case["template"]), tokens)
    assert (t.chat_format_reason, t.chat_format_compared) == ("", True)
    assert t.chat_format == OTHER_NAMES.get(case["family"], case["family"])


# A template that the program's detection by text would miss, or take for its sibling.
REWRITTEN = [
    ("glm-4.7.jinja", "[gMASK]<sop>", "{#- of our fine-tune #}[gMASK]<sop>", "glm-4.7"),
    ("chatml.jinja", "messages", "messages[:]", "chatml"),
]


@pytest.mark.parametrize(("name", "old", "new", "family"), REWRITTEN)
def test_rewritten_templates_of_the_same_prompts(name, old, new, family, program):
    assert old in template(name)
    assert compared(template(name).replace(old, new, 1)).chat_format == family


CHANGED = [
    ("glm-4.7.jinja", "'<think>' -}}", "'' -}}", "for one question it writes"),
    ("qwen3.jinja", "# Tools", "# Instruments", "for a tool it writes"),
    ("glm-edge.jinja", "<|system|>", "<|user|>", "for a system prompt it writes"),
]


@pytest.mark.parametrize(("name", "old", "new", "words"), CHANGED)
def test_other_prompts_are_no_format(name, old, new, words, program):
    assert old in template(name)
    t = compared(template(name).replace(old, new))
    assert (t.chat_format, t.chat_format_compared) == ("", False)
    assert words in t.chat_format_reason
    assert chat_words(t).startswith("no chat format: the model's chat template is none of those known here")


HOSTILE = [
    ("{% if %}", 'cannot be rendered: "TemplateSyntaxError'),
    ("{{ 'x' * 10 ** 12 }}", "fails on one question: 'MemoryError"),
    ("{{ messages.__class__.__mro__ }}", 'fails on one question: "SecurityError'),
    ("{{ nobody.knows }}", 'fails on one question: "UndefinedError'),
]


@pytest.mark.parametrize(("text", "words"), HOSTILE)
def test_templates_that_cannot_be_rendered(text, words, program):
    assert words in compared(text).chat_format_reason


def test_without_the_program_nothing_is_stored(monkeypatch):
    monkeypatch.setenv("DLLAMA_PROGRAM", "")
    t = compared(template("glm-4.7.jinja"))
    assert (t.chat_format, t.chat_format_reason, t.chat_format_compared) == ("", "", False)
    assert chat_words(t) == "chat format: dllama looks at the template"


def test_another_program_is_not_asked(monkeypatch):
    monkeypatch.setenv("DLLAMA_PROGRAM", "/bin/true")
    assert compared(template("glm-4.7.jinja")).chat_format_reason == ""


def test_the_program_takes_what_is_stored(program, tmp_path):
    (tmp_path / "request.json").write_text('{"messages": [{"role": "user", "content": "hi"}]}')
    for name, text in (("same", template("glm-4.7.jinja")), ("other", "{{ messages[0]['content'] }}!")):
        t = compared(text)
        write_tokenizer(tmp_path / f"{name}.t", t)
        command = [program, "template", "--tokenizer", tmp_path / f"{name}.t", "--request", tmp_path / "request.json"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if name == "same":
            assert trailer(tmp_path / "same.t")["chat_format_compared"] is True
            assert result.stdout == "[gMASK]<sop><|user|>hi<|assistant|><think>"
        else:
            assert result.returncode == 1
            assert trailer(tmp_path / "other.t")["chat_format_reason"] in result.stderr


def test_the_list_is_the_programs(program, tmp_path):
    (tmp_path / "request.json").write_text('{"messages": [{"role": "user", "content": "hi"}]}')
    command = [program, "template", "--family", "?", "--request", tmp_path / "request.json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120).stderr
    known = set(re.search(r"known are ([^()\n]+)", said)[1].replace(",", " ").split())
    # Models that have no template, or no format.
    assert known - {"none", "chatglm", "chatglm2"} == set(FORMATS)
