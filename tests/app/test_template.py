"""dllama template: what a conversation becomes."""

import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES = ROOT / "tests/data/chat"
PROGRAM = os.environ["DLLAMA_PROGRAM"]


def template(*arguments):
    return subprocess.run([PROGRAM, "template", *map(str, arguments)], capture_output=True, timeout=120)


@pytest.mark.parametrize("family", ["glm-4.7-flash", "llama-3.2", "mistral-v3"])
def test_prompt_and_nothing_else(family, tmp_path):
    for case in json.loads((CASES / f"render-{family}.json").read_text(encoding="utf-8"))[::8]:
        (tmp_path / "request.json").write_text(json.dumps(case), encoding="utf-8")
        result = template("--family", family, "--request", tmp_path / "request.json", "--date", "2025-07-15")
        if "rendered" in case:
            assert (result.returncode, result.stdout.decode(), result.stderr) == (0, case["rendered"], b"")
        else:
            assert (result.returncode, result.stdout) == (1, b"")
            assert case["error"] in result.stderr.decode()


@pytest.mark.parametrize(
    ("style", "family"), [("glm45", "glm-4.5"), ("qwen3_coder", "intellect-3"), ("llama31", "llama-3.2")]
)
def test_a_text_is_parsed(style, family, tmp_path):
    for case in json.loads((CASES / f"parse-{style}.json").read_text(encoding="utf-8"))[::12]:
        (tmp_path / "text").write_text(case["text"], encoding="utf-8", newline="")
        flags = []
        if case.get("tools") and case.get("tool_choice") != "none":
            (tmp_path / "tools.json").write_text(json.dumps(case["tools"]), encoding="utf-8")
            flags += ["--tools", tmp_path / "tools.json"]
        if not case.get("prompt_ended_in_think"):
            flags.append("--think-closed")
        if case.get("truncated"):
            flags.append("--truncated")
        result = template("--family", family, "--parse", tmp_path / "text", *flags)
        assert (result.returncode, result.stderr) == (0, b"")
        message = json.loads(result.stdout)
        calls = [call["function"] for call in message["tool_calls"]]
        message["tool_calls"] = [{**call, "arguments": json.loads(call["arguments"])} for call in calls]
        assert message in [case["expect"], *case.get("also_accept", [])], case["name"]


REQUEST = '{"messages": [{"role": "user", "content": "hi"}]}'
FAULTS = [
    (REQUEST, ["--family", "glm-5"], 'unknown chat format "glm-5", known are none, chatglm'),
    (REQUEST, ["--family", "chatml", "--date", "2024-02-30"], "--date 2024-02-30 is not a date"),
    (REQUEST, ["--family", "chatml", "--tokenizer", "x.t"], "template takes one of --tokenizer and --family"),
    (REQUEST, ["--tokenizer", "nowhere.t"], "nowhere.t: No such file"),
    ("[1", ["--family", "chatml"], "request.json is not valid JSON"),
    ("{}", ["--family", "chatml"], "the request has no messages"),
    ('{"messages": []}', ["--family", "chatml"], "the list of messages is empty"),
    ('{"messages": [{"role": "user", "content": 3}]}', ["--family", "chatml"], "content of message 0 is not a list"),
    (
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        ["--family", "chatml"],
        "a part of type image_url in message 0: only texts are understood here",
    ),
]


@pytest.mark.parametrize(("request_text", "arguments", "words"), FAULTS)
def test_faults_are_one_line(request_text, arguments, words, tmp_path):
    (tmp_path / "request.json").write_text(request_text, encoding="utf-8")
    result = template("--request", tmp_path / "request.json", *arguments)
    assert result.returncode == 1
    assert words in result.stderr.decode()
    assert result.stderr.count(b"\n") == 1
