"""Which chat format a model speaks.

A template is compared: probe conversations are rendered by jinja2 from the publisher's own text and by each of the
program's renderers (`dllama template --family`). The format whose prompts are all equal is stored; if none is, the
first difference, and the program then continues plain text rather than write turns that the model does not know.
Without the program nothing is stored: it looks at the template itself when it loads the file."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from . import ConversionError
from .printing import shown
from .tokenizer_file import Tokenizer

# The program's formats, of which no two write the same for all probes; a test holds this list against the program's.
FORMATS = (
    "chatglm3", "glm-4-9b-chat", "glm4-0414", "glm-z1", "glm-edge", "glm-4.5", "glm-4.5v", "glm-4.7", "glm-5.2",
    "glm-5.3-flash", "intellect-3", "llama2", "llama3", "llama-3.1", "llama-3.2", "chatml", "chatml-closed", "qwen3",
    "qwen3-instruct-2507", "qwen3-thinking-2507", "qwen3-coder", "qwen3-coder-gguf", "deepseek-r1-distill",
    "mistral-v1-old", "mistral-v1", "mistral-v3", "solar-open",
)  # fmt: skip

_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}
_USER = {"role": "user", "content": "What does a cat say?"}
_SYSTEM = {"role": "system", "content": "You are brief."}
_ANSWER = {"role": "assistant", "content": "Meow."}
_NEXT = {"role": "user", "content": "And  a dog?\n"}
# What is asked, and the request as the API takes it.
PROBES = [
    ("one question", {"messages": [_USER]}),
    ("a system prompt", {"messages": [_SYSTEM, _USER]}),
    ("a second question", {"messages": [_USER, _ANSWER, _NEXT]}),
    ("thinking switched off", {"messages": [_USER], "chat_template_kwargs": {"enable_thinking": False}}),
    ("a tool", {"messages": [_SYSTEM, _USER], "tools": [_TOOL]}),
]
_NO_TIME = 120


def class_format(model_config: dict, t: Tokenizer) -> str:
    """The format of the models that have no template: their class tells. "" for all others."""
    tokens = {text for _, text, _ in t.special}
    if t.text_rules == "chatglm-6b":
        return "chatglm"
    if t.kind == "sentencepiece" and "[gMASK]" in tokens:
        return "chatglm3" if "<|user|>" in tokens else "chatglm2"
    architecture = (model_config.get("architectures") or [""])[0]
    if architecture == "ChatGLMModel" and "<|assistant|>" in tokens and not t.chat_template:
        return "glm-4-9b-chat"
    return ""


def find_program() -> str | None:
    """dllama: $DLLAMA_PROGRAM (empty: none), beside the converter, or on the PATH."""
    if "DLLAMA_PROGRAM" in os.environ:
        named = os.environ["DLLAMA_PROGRAM"]
        return named if os.access(named, os.X_OK) else None
    beside = pathlib.Path(__file__).resolve().parents[2] / "dllama"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("dllama")


def chat_words(t: Tokenizer) -> str:
    """What a converter says of the format when all is done."""
    if t.chat_format_reason:
        return f"no chat format: {t.chat_format_reason}"
    if t.chat_format_compared:
        return f"chat format {t.chat_format}: its prompts are those of the model's template"
    if t.chat_format:
        return f"chat format {t.chat_format}"
    return "chat format: dllama looks at the template" if t.chat_template else "no chat template"


def settle_chat_format(t: Tokenizer) -> None:
    """Compares the template, if there is one and a program to compare it with, and stores what was found in `t`."""
    program = find_program()
    if not t.chat_template or t.chat_format or program is None:
        return
    try:
        expected = _published(t)
    except ConversionError as error:
        t.chat_format_reason = str(error)
        return
    with tempfile.TemporaryDirectory() as folder:
        for i, (_, request) in enumerate(PROBES):
            pathlib.Path(folder, f"{i}.json").write_text(json.dumps(request), encoding="utf-8")
        if _ours(program, "none", pathlib.Path(folder, "0.json")) != _USER["content"]:
            return  # another program, or one of an older version
        nearest = (-1, -1, "")
        for name in FORMATS:
            equal, words, reason = 0, 0, ""
            for i, (probe, _) in enumerate(PROBES):
                if expected[i] is None:
                    continue
                found = _ours(program, name, pathlib.Path(folder, f"{i}.json"))
                if found == expected[i]:
                    equal += 1
                    continue
                words, reason = _difference(name, probe, expected[i], found)
                break
            if not reason:
                t.chat_format, t.chat_format_compared = name, True
                return
            if (equal, words) > nearest[:2]:
                nearest = (equal, words, reason)
    t.chat_format_reason = nearest[2]


# A prompt; a refusal of the template's own is an empty one.
_REFUSED = ""


def _published(t: Tokenizer) -> list[str | None]:
    """The prompt for each probe. None: the template does not know what is asked. Raises ConversionError."""
    requests = [_as_published(t.chat_template, request) for _, request in PROBES]
    task = {"template": t.chat_template, "tokens": t.template_tokens, "requests": requests}
    script = pathlib.Path(__file__).with_name("render_template.py")
    try:
        done = subprocess.run(
            [sys.executable, script], input=json.dumps(task), capture_output=True, text=True, encoding="utf-8",
            timeout=_NO_TIME, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"the model's chat template was not rendered within {_NO_TIME} s") from error
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["it took too long"])[-1]
        raise ConversionError(f"the model's chat template cannot be rendered: {shown(why)}")
    answer = json.loads(done.stdout)
    prompts: list[str | None] = []
    for (probe, request), result in zip(PROBES, answer["results"], strict=True):
        if "error" in result and not result["refused"]:
            raise ConversionError(f"the model's chat template fails on {probe}: {shown(result['error'])}")
        known = "tools" not in request or "tools" in answer["variables"] or _TOOLS_IN_MESSAGE in t.chat_template
        prompts.append(result.get("text", _REFUSED) if known else None)
    return prompts


# GLM-4's template reads the tools from a message, which the publisher's server puts before all others.
_TOOLS_IN_MESSAGE = "item['tools']"


def _as_published(template: str, request: dict) -> dict:
    """The request as the publisher's server hands it to the template."""
    if "tools" not in request or _TOOLS_IN_MESSAGE not in template:
        return request
    first = {"role": "system", "content": "", "tools": request["tools"]}
    return {"messages": [first, *request["messages"]]}


def _ours(program: str, name: str, request: pathlib.Path) -> str:
    command = [program, "template", "--family", name, "--request", request, "--date", "2025-07-15"]
    done = subprocess.run(command, capture_output=True, timeout=_NO_TIME, check=False)
    return done.stdout.decode(errors="replace") if done.returncode == 0 else _REFUSED


def _difference(name: str, probe: str, expected: str, found: str) -> tuple[int, str]:
    """How many characters are equal, and a line with the first difference."""
    at = len(os.path.commonprefix([expected, found]))
    if _REFUSED in (expected, found) and expected != found:
        who = "refuses it" if expected == _REFUSED else f"writes {shown(expected[:60])}"
        other = "is refused" if found == _REFUSED else f"is {shown(found[:60])}"
        return at, f"the model's chat template is none of those known here: for {probe} it {who}, {name} {other}"
    begin = max(0, at - 20)
    return at, (
        f"the model's chat template is none of those known here: for {probe} it writes "
        f"{shown(expected[begin : at + 40])} where {name} has {shown(found[begin : at + 40])}"
    )
