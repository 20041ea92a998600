"""Answers of the demo model: streamed and whole, one at a time and many."""

import concurrent.futures
import json

import openai
from serving import STORY, chat_body, events, serving, wait_until


def test_an_answer_is_whole_and_counted(server):
    answer = server.chat(max_tokens=12)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["message"]["content"]) > 10
    usage = answer["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12


def test_a_stream_says_what_the_whole_answer_says(server):
    whole = server.chat(max_tokens=20)["choices"][0]["message"]["content"]
    data = list(
        events(server, "/v1/chat/completions", chat_body(max_tokens=20, stream_options={"include_usage": True}))
    )
    assert data[-1] == "[DONE]"
    chunks = [json.loads(line) for line in data[:-1]]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert text == whole
    assert sum(1 for c in chunks if c["choices"] and c["choices"][0]["delta"].get("content")) > 10
    assert chunks[-1]["usage"]["completion_tokens"] == 20
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "length"


def test_the_official_client_streams(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    name = client.models.list().data[0].id
    whole = server.chat(max_tokens=20)["choices"][0]["message"]["content"]
    stream = client.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": STORY}],
        max_tokens=20,
        temperature=0,
        stream=True,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole


def test_a_stop_text_ends_the_answer(server):
    whole = server.complete(STORY, 24)["choices"][0]["text"]
    stop = whole[10:14]
    choice = server.complete(STORY, 24, stop=[stop])["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == whole[: whole.index(stop)]


def test_parallel_answers_are_those_that_come_alone(server):
    prompts = [f"{name} went to the {place} and" for name in ["Tom", "Lily", "Ben"] for place in ["park", "sea", "zoo"]]
    alone = [server.complete(prompt, 24)["choices"][0]["text"] for prompt in prompts]
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda p: server.complete(p, 24)["choices"][0]["text"], prompts))
    assert together == alone


def test_choices_of_one_request(server):
    answer = server.complete(STORY, 8, n=3, temperature=1.0, seed=5)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts == [c["text"] for c in server.complete(STORY, 8, n=3, temperature=1.0, seed=5)["choices"]]
    assert answer["usage"]["completion_tokens"] == 24


def test_the_second_turn_computes_only_what_is_new(server):
    prompt = "The old man told the children about the big ship. " * 8
    first = server.complete(prompt, 16)
    second = server.complete(prompt + first["choices"][0]["text"] + " Then", 4)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"]


def test_a_client_that_leaves_frees_its_place():
    with serving("--parallel", "1") as server:
        connection = server.raw()
        body = json.dumps(chat_body(max_tokens=900, stream=True, ignore_eos=True)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert b"200 OK" in connection.recv(1000)
        assert [s["is_processing"] for s in server.json("GET", "/slots")[1]] == [True]
        connection.close()
        wait_until(lambda: not server.json("GET", "/slots")[1][0]["is_processing"], 5, "the end of the answer")


def test_sigterm_lets_answers_end():
    with serving() as server:
        stream = events(server, "/v1/chat/completions", chat_body(max_tokens=300))
        first = next(stream)
        server.process.terminate()
        rest = list(stream)
        assert json.loads(first)["choices"] and rest[-1] == "[DONE]"
        assert json.loads(rest[-2])["choices"][0]["finish_reason"] in ("length", "stop")
        assert server.process.wait(timeout=10) == 0


def test_logprobs_come_for_each_token(server):
    answer = server.chat(max_tokens=6, logprobs=True, top_logprobs=3)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    for entry in content:
        assert entry["logprob"] < 0 and len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"]
    text = b"".join(bytes(entry["bytes"]) for entry in content).decode()
    assert text.lstrip("\n") == answer["choices"][0]["message"]["content"]


def test_penalties_and_biases_change_the_answer(server):
    plain = server.complete(STORY, 40)["choices"][0]["text"]
    first = server.json("POST", "/tokenize", {"content": plain})[1]["tokens"][0]
    biased = server.complete(STORY, 4, logit_bias={str(first): -100})["choices"][0]["text"]
    assert server.json("POST", "/tokenize", {"content": biased})[1]["tokens"][0] != first
    assert server.complete(STORY, 40, frequency_penalty=2.0)["choices"][0]["text"] != plain
