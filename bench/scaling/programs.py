"""The programs that are measured, and what they print: dllama, and distributed-llama, whose output ours follows."""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from lan import Lan

PORT = 9999
START_SECONDS = 60


@dataclass
class Job:
    model: Path
    tokenizer: Path
    prompt_tokens: int
    answer_tokens: int
    threads: int
    seconds: int  # after which a run is given up


@dataclass
class Run:
    """What the root said of one run. Times in ms for a step of one token."""

    prompt_rate: float = 0.0
    answer_rate: float = 0.0
    step: float = 0.0
    collectives: float = 0.0  # of the step, spent in collectives with the other hosts
    wire: float | None = None  # of that, what the line needs if nobody is waited for
    prompt_collectives: float = 0.0  # share of the prompt's time
    received_kb: float = 0.0  # by the root in a step
    nodes: list[tuple[str, ...]] = field(default_factory=list)  # what each said of itself: see NODE_COLUMNS
    lan_report: str = ""


@dataclass
class Program:
    name: str
    path: Path
    ours: bool
    flags: list[str] = field(default_factory=list)  # of root and workers

    def command(self) -> list[str]:
        """distributed-llama leaves its lines in a buffer where nobody can wait for them."""
        return [str(self.path)] if self.ours else ["stdbuf", "-oL", str(self.path)]

    def serves(self, hosts: int) -> bool:
        """distributed-llama divides by powers of two only."""
        return self.ours or hosts & (hosts - 1) == 0


STEP = re.compile(r"(Eval|Pred) *(\d+) ms Sync *(\d+) ms \| Sent *\d+ kB Recv *(\d+) kB")
RATE = re.compile(r"tokens/s: ([\d.]+)")
LINE = re.compile(r"nodes, (\d+) us and (\d+) MB/s between them")
LAYERS = re.compile(r"nLayers: (\d+)")
NODE = re.compile(r"^   (\S+) +(\d+) ms *(\d+) ms *(\d+) us *(\d+) us *(\d+) kB *(\d+) kB$", re.MULTILINE)
NODE_COLUMNS = ("node", "compute ms", "sync ms", "p50 us", "p99 us", "sent kB", "received kB")


class Failed(Exception):
    """A program ended or hung; its last lines."""


def start_workers(lan: Lan, program: Program, job: Job, hosts: int, folder: Path) -> None:
    workers = {}
    for host in range(1, hosts):
        command = [*program.command(), "worker", "--host", lan.address(host), "--port", str(PORT)]
        command += ["--nthreads", str(job.threads), *program.flags]
        # Each of our workers reads its part of the file itself.
        command += ["--model", str(job.model), "--cache-dir", "none", "--device", "cpu"] if program.ours else []
        path = folder / f"worker-{host}.log"
        with path.open("wb") as log:
            workers[path] = lan.start(host, command, stdout=log, stderr=log)
    deadline = time.monotonic() + START_SECONDS
    for path, worker in workers.items():
        while "Listening on" not in (text := path.read_text(errors="replace")):
            if worker.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{program.name}, {path.name}: it does not listen:\n{text[-500:]}")
            time.sleep(0.05)


def root_command(lan: Lan, program: Program, job: Job, hosts: int) -> list[str]:
    text = ("the quick brown fox jumps over the lazy dog " * (job.prompt_tokens // 44 + 1))[: job.prompt_tokens]
    positions = job.prompt_tokens + job.answer_tokens
    command = [*program.command(), "inference", "--model", str(job.model), "--tokenizer", str(job.tokenizer)]
    command += ["--prompt", text, "--steps", str(positions), "--temperature", "0", "--nthreads", str(job.threads)]
    command += ["--max-seq-len", str(positions + 8), "--buffer-float-type", "q80", *program.flags]
    command += ["--device", "cpu"] if program.ours else []
    if hosts > 1:
        command += ["--workers", *(f"{lan.address(host)}:{PORT}" for host in range(1, hosts))]
    return command


def run(lan: Lan, program: Program, job: Job, hosts: int, neighbours: int = 0) -> Run:
    """On hosts 0, 1, ...; `neighbours` more hosts answer the same prompt, at greater length, each for itself."""
    longer = replace(job, answer_tokens=8 * job.answer_tokens)
    for host in range(hosts, hosts + neighbours):
        lan.start(host, root_command(lan, program, longer, 1), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        start_workers(lan, program, job, hosts, Path(folder))
        # distributed-llama sends all weights at every start: that is not what is measured.
        lan.set_unlimited(not program.ours)
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        root = lan.start(0, root_command(lan, program, job, hosts), **pipe)
        watchdog = threading.Timer(job.seconds, root.kill)
        watchdog.start()
        lines = []
        for line in root.stdout:
            lines.append(line)
            if "Weights loaded" in line:
                lan.set_unlimited(False)
        watchdog.cancel()
        if root.wait() != 0:
            logs = "".join(f"{log.name}: {log.read_text(errors='replace')[-300:]}" for log in Path(folder).iterdir())
            raise Failed(
                f"{program.name} on {hosts} hosts ended with {root.returncode}:\n{''.join(lines)[-800:]}{logs}"
            )
    return read_output("".join(lines), program.ours)


def read_output(text: str, ours: bool) -> Run:
    steps = [(kind, int(ms), int(sync), int(kb)) for kind, ms, sync, kb in STEP.findall(text)]
    prompt = [step for step in steps if step[0] == "Eval"]
    # Our first token comes out of the prompt's own step and is shown with no time.
    answer = [step for step in steps if step[0] == "Pred" and step[1] > 0]
    rates = [float(rate) for rate in RATE.findall(text)]
    if not answer or len(rates) != 2:
        raise Failed(f"the output is not that of a finished run:\n{text[-800:]}")
    result = Run(prompt_rate=rates[0], answer_rate=rates[1], step=1000.0 / rates[1], nodes=NODE.findall(text))
    result.collectives = sum(step[2] for step in answer) / len(answer)
    result.received_kb = sum(step[3] for step in answer) / len(answer)
    whole = sum(step[1] + (0 if ours else step[2]) for step in prompt)
    result.prompt_collectives = sum(step[2] for step in prompt) / max(whole, 1)
    line, layers = LINE.search(text), LAYERS.search(text)
    if line and layers:
        # Two all-reduces a layer and one for the logits.
        latency, rate = int(line[1]), max(int(line[2]), 1)
        needed = ((2 * int(layers[1]) + 1) * latency + result.received_kb * 1024 / rate) / 1000
        result.wire = min(needed, result.collectives)
    return result
