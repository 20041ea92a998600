"""What is wrong with a request is said in the client's own form; nothing a client sends stops the server."""

import concurrent.futures
import json
import socket
import subprocess

import pytest
from serving import DEMO, PROGRAM, STORY, chat_body, serving

TOOL = {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}
JSON = {"type": "json_object"}


def test_health_models_props_slots(server):
    assert server.json("GET", "/health") == (200, {"status": "ok"})
    assert server.json("GET", "/v1/models")[1]["data"][0]["id"] == "demo"
    assert server.json("GET", "/v1/models/demo")[1]["id"] == "demo"
    props = server.json("GET", "/props")[1]
    assert props["total_slots"] == 4 and props["default_generation_settings"]["n_ctx"] == 1024
    assert "/" not in props["model_path"]
    assert len(server.json("GET", "/slots")[1]) == 4


def test_the_page_comes_from_the_program(server):
    status, headers, page = server.request("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html") and b"<html" in page
    assert "default-src 'none'" in headers["content-security-policy"]
    assert server.request("GET", "/", headers={"If-None-Match": headers["etag"]})[0] == 304
    assert server.json("POST", "/")[0] == 405


def test_tokenize_and_back(server):
    tokens = server.json("POST", "/tokenize", {"content": STORY})[1]["tokens"]
    assert server.json("POST", "/detokenize", {"tokens": tokens})[1]["content"] == STORY
    pieces = server.json("POST", "/tokenize", {"content": STORY, "with_pieces": True})[1]["tokens"]
    assert "".join(p["piece"] for p in pieces) == STORY
    assert server.json("POST", "/detokenize", {"tokens": [999999]})[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/nothing", None, 404, "not_found_error"),
        ("GET", "/v1/chat/completions", None, 405, "invalid_request_error"),
        ("POST", "/v1/chat/completions", "{", 400, "invalid_request_error"),
        ("POST", "/v1/chat/completions", "[" * 100000, 400, "invalid_request_error"),
        ("POST", "/v1/chat/completions", chat_body(temperature="hot"), 400, "invalid_request_error"),
        ("POST", "/v1/chat/completions", chat_body(model="gpt-4"), 404, "invalid_request_error"),
        ("POST", "/v1/chat/completions", chat_body(response_format=JSON), 400, "invalid_request_error"),
        ("POST", "/v1/chat/completions", chat_body(tools=[TOOL], tool_choice="required"), 400, "invalid_request_error"),
        ("POST", "/v1/chat/completions", chat_body(thinking_budget=8), 400, "invalid_request_error"),
        ("POST", "/v1/completions", {"prompt": "Once", "echo": True}, 400, "invalid_request_error"),
        ("GET", "/v1/models/gpt-4", None, 404, "invalid_request_error"),
        ("POST", "/v1/embeddings", {"input": "x"}, 501, "not_supported_error"),
        ("POST", "/tokenize", {"content": 5}, 400, "invalid_request_error"),
    ],
)
def test_faults_are_told(server, method, path, body, status, kind):
    got, answer = server.json(method, path, body)
    assert (got, answer["error"]["type"]) == (status, kind), answer


def test_too_long_a_prompt_is_told_with_both_numbers(server):
    status, answer = server.json("POST", "/v1/chat/completions", chat_body("The cat sat on the mat. " * 300))
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    assert "1024" in answer["error"]["message"]


def test_a_full_queue_is_429():
    with serving("--parallel", "1", "--queue", "0") as server:
        connection = server.raw()
        body = json.dumps(chat_body(max_tokens=900, stream=True, ignore_eos=True)).encode()
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        assert b"200 OK" in connection.recv(1000)
        status, headers, answer = server.request("POST", "/v1/chat/completions", chat_body())
        assert status == 429 and int(headers["retry-after"]) > 0
        assert json.loads(answer)["error"]["type"] == "rate_limit_error"
        connection.close()


def test_what_waits_is_answered_in_its_turn():
    with serving("--parallel", "1", "--queue", "8") as server:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: server.chat(max_tokens=8), range(6)))
        assert len({a["choices"][0]["message"]["content"] for a in answers}) == 1


def test_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n")
    with serving("--api-key-file", str(keys)) as server:
        assert server.json("GET", "/health")[0] == 200
        assert server.json("GET", "/v1/models")[0] == 401
        assert server.json("GET", "/v1/models", headers={"Authorization": "Bearer first-kex"})[0] == 401
        assert server.json("GET", "/v1/models", headers={"Authorization": "Bearer first-key"})[0] == 200
        assert server.json("GET", "/v1/models", headers={"x-api-key": "second-key"})[0] == 200


def test_cors_only_when_asked(server):
    origin = {"Origin": "https://chat.example"}
    assert "access-control-allow-origin" not in server.request("GET", "/health", headers=origin)[1]
    with serving("--cors-origin", "https://chat.example") as other:
        status, headers, _ = other.request("OPTIONS", "/v1/chat/completions", headers=origin)
        assert status == 204 and headers["access-control-allow-origin"] == "https://chat.example"
        assert (
            "access-control-allow-origin" not in other.request("GET", "/health", headers={"Origin": "https://evil"})[1]
        )


def test_bodies_are_limited():
    with serving("--body-limit", "1") as server:
        status, _, answer = server.request("POST", "/v1/chat/completions", "x" * (3 << 20))
        assert status == 413 and b"1048576" in answer
        assert server.json("GET", "/health")[0] == 200


def test_pipelined_requests_are_answered_in_order(server):
    with server.raw() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while part := connection.recv(4096):
            answer += part
        assert answer.index(b"200 OK") < answer.index(b"404 Not Found")


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"\r\n\r\n", b"GET\r\n\r\n", b"x" * 100000]
)
def test_what_is_no_http_is_turned_away(server, junk):
    with server.raw() as connection:
        connection.sendall(junk)
        connection.settimeout(20)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert server.json("GET", "/health")[0] == 200


def test_the_server_is_no_worker_of_its_own():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = ["--port", port, "--workers", f"127.0.0.1:{port}", "--nthreads", "1"]
    result = subprocess.run([PROGRAM, *DEMO, *flags], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert f"worker 127.0.0.1:{port} is the port that this program itself listens on" in result.stderr
