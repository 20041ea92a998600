"""dllama chat on a terminal, driven by a script."""

import json
import os
import pathlib
import pty
import select
import subprocess
import termios
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ["DLLAMA_PROGRAM"]
DEMO = ["--model", str(ROOT / "models/demo/demo-q40.m"), "--tokenizer", str(ROOT / "models/demo/demo.t")]
CHAT = [PROGRAM, "chat", *DEMO, "--temperature", "0"]
# The line editor has taken the terminal over when it shows its prompt.
PROMPT = "\x1b[?2004h> "


class Terminal:
    def __init__(self, *flags, env=None, max_tokens=4):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*CHAT, "--max-tokens", str(max_tokens), *flags],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **(env or {})},
        )
        os.close(slave)
        self.seen = ""

    def expect(self, text, timeout=120):
        """What was printed up to `text`, which is taken away with it."""
        end = time.monotonic() + timeout
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come, but {self.seen[-2000:]!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"the chat ended before {text!r}: {self.seen[-2000:]!r}") from None
        before, self.seen = self.seen.split(text, 1)
        return before

    def send(self, data):
        os.write(self.master, data if isinstance(data, bytes) else data.encode())

    def type(self, text):
        """Sends a long text; what the program shows of it is read meanwhile, else both would wait."""
        for at in range(0, len(text), 256):
            self.send(text[at : at + 256])
            while select.select([self.master], [], [], 0.01)[0]:
                self.seen += os.read(self.master, 65536).decode(errors="replace")

    def ends(self):
        """The exit code after what was sent. A terminal that nobody reads would keep the program waiting."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    break
        return self.process.wait(60)

    def ends_by_key(self):
        self.send("\x04")
        return self.ends()


@pytest.fixture
def chat():
    terminal = Terminal("--system", "")
    terminal.expect(PROMPT)
    yield terminal
    terminal.process.kill()
    os.close(terminal.master)


def test_empty_system_is_not_asked_for(chat):
    assert "System prompt" not in chat.seen
    assert chat.ends_by_key() == 0


def test_one_line_at_the_start():
    terminal = Terminal("--system", "")
    start = terminal.expect(PROMPT)
    assert start.count("⭐") == 1
    assert "RegularVocabSize" not in start
    assert terminal.ends_by_key() == 0


def test_ctrl_d_before_the_prompt_ends_the_chat():
    terminal = Terminal("--system", "")
    terminal.send("\x04")
    assert terminal.ends() == 0


def test_keys_before_the_prompt_are_not_lost():
    terminal = Terminal("--system", "")
    terminal.send("/stats\r\x04")
    assert terminal.ends() == 0
    assert "tokens of context" in terminal.seen


def test_carriage_returns_are_no_text(tmp_path):
    outputs = []
    for text in ("Once upon a time\n\n/stats\n", "Once upon a time\r\n\r\n/stats\r\n"):
        command = [*CHAT, "--max-tokens", "4", "--system", ""]
        result = subprocess.run(command, input=text.encode(), capture_output=True, timeout=120)
        assert result.returncode == 0
        outputs.append([line for line in result.stdout.decode().splitlines() if "tokens/s" not in line])
    assert outputs[0] == outputs[1]
    assert sum("Assistant" in line for line in outputs[0]) == 1


def test_carriage_return_and_line_feed_end_one_line(chat):
    chat.send("Once upon a time\r\n/stats\r\n")
    said = chat.expect("tokens of context")
    assert said.count("Assistant") == 1
    chat.expect(PROMPT)
    chat.send("/save /dev/stdout\r")
    saved = chat.expect("(saved")
    assert saved.count('"user"') == 1 and '"Once upon a time"' in saved
    assert chat.ends_by_key() == 0


def test_a_line_longer_than_a_terminals_is_whole(chat, tmp_path):
    question = ("everything " * 600)[:6000].strip() + "!"
    chat.type(question)
    chat.send("\r")
    chat.expect("Assistant")
    chat.expect(PROMPT)
    chat.send(f"/save {tmp_path / 'saved.json'}\r")
    chat.expect("(saved")
    messages = json.loads((tmp_path / "saved.json").read_text())["messages"]
    assert messages[0]["content"] == question
    assert chat.ends_by_key() == 0


def test_long_questions_are_told_and_the_chat_goes_on(chat):
    chat.send("\x1b[200~" + "word and " * 670 + "\x1b[201~\r")
    said = chat.expect("is not sent")
    assert "of 1024 tokens of context" in said
    chat.expect(PROMPT)
    chat.send("Once\r")
    chat.expect("Assistant")
    chat.expect(PROMPT)
    assert chat.ends_by_key() == 0


def test_ctrl_c_begins_the_line_anew(chat):
    # As soon as the prompt shows: before the program waits for a key, or while it does.
    for _ in range(20):
        chat.send("nonsense\x03")
        chat.expect("Ctrl-D ends the chat")
        chat.expect(PROMPT)
    chat.send("/stats\r")
    chat.expect("tokens of context")
    assert chat.ends_by_key() == 0


def test_ctrl_c_stops_an_answer():
    terminal = Terminal("--system", "", max_tokens=100000)
    terminal.expect(PROMPT)
    for _ in range(50):
        terminal.send("Tell me a story.\r")
        terminal.expect("Assistant")
        terminal.send("\x03")
        said = terminal.expect(PROMPT)
        if "🛑" in said:
            break
        # The answer had ended before. (With a Ctrl-C a terminal drops what it has not shown yet, a prompt perhaps.)
        if "Ctrl-D ends the chat" not in said:
            terminal.expect("Ctrl-D ends the chat")
            terminal.expect(PROMPT)
    else:
        raise AssertionError("no answer was stopped")
    terminal.send("/stats\r")
    terminal.expect("tokens of context")
    assert terminal.ends_by_key() == 0


def test_pasted_lines_are_one_question(chat):
    chat.send("\x1b[200~Once upon\ra time\r\x1b[201~")
    chat.send("\r")
    chat.expect("Assistant")
    chat.expect(PROMPT)
    assert "Assistant" not in chat.seen
    chat.send("/save /dev/stdout\r")
    assert r"Once upon\na time" in chat.expect("(saved")
    assert chat.ends_by_key() == 0


def test_latin_1_bytes_are_letters(chat):
    chat.send(b"caf\xe9\r")
    chat.expect("Assistant")
    chat.expect(PROMPT)
    chat.send("/save /dev/stdout\r")
    assert "café" in chat.expect("(saved")
    assert chat.ends_by_key() == 0


def test_a_latin_1_terminal_gets_no_half_letters():
    terminal = Terminal("--system", "", env={"LC_ALL": "C"})
    terminal.expect("> ")
    terminal.send(b"caf\xe9\r")
    terminal.expect("Assistant")
    terminal.expect("> ")
    terminal.send("/save /dev/stdout\r")
    assert "caf\u00e9" in terminal.expect("(saved")
    assert terminal.ends_by_key() == 0
