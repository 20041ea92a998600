"""From a model's name to a running program."""

from .cluster import read_cluster
from .errors import LaunchError
from .files import ensure_model, home_of, model_files
from .flags import choose_flags, node_flags
from .models import BITS, Model, find_model, with_adapter
from .places import DEMO
from .tools import find_program, say, start, usable_gpus


def model_line(model: Model, program: str, args) -> tuple[list, str]:
    """dllama's flags for the model, which is brought here if it has to be, and why."""
    here = model_files(home_of(model, args), args.type)
    if model.repository is None:
        here = (DEMO / "demo-q40.m", DEMO / "demo.t") if (DEMO / "demo-q40.m").exists() else None
    weights = here[0].stat().st_size if here else (model.q40_gb or 0) * 1e9 * BITS[args.type] / BITS["q40"]
    try:
        # Before a download of hours.
        flags, why = choose_flags(model, weights, args.cluster, usable_gpus(program))
    except LaunchError:
        if not args.force:
            raise
        flags, why = [], "--force: what dllama chooses"
    if not here and model.repository is not None:
        here = ensure_model(model, args)
    files = ["--model", here[0]] if here else []
    if here and here[1]:
        files += ["--tokenizer", here[1]]
    return files + flags, why


def run_model(command: str, args) -> int:
    base = find_model(args.name)
    model = with_adapter(base, args.lora)
    cluster = read_cluster(base, args) if args.cluster else None
    program = find_program(args.dry_run)
    flags, why = model_line(model, program, args)
    line = [program, command, *flags]
    if cluster:
        line += ["--workers", *cluster["workers"], "--secret-file", cluster["secret_file"]]
        why += f"; {len(cluster['workers'])} workers, talking in secret"
    if command == "inference":
        line += ["--prompt", args.prompt, "--steps", args.steps]
    if command == "api":
        line += ["--host", args.host, "--port", args.port, "--served-name", model.name]
    say(why)
    return start(with_rest(line, args.rest), args.dry_run)


def with_rest(line: list, rest: list[str]) -> list:
    """The command with the user's own flags, which take the place of ours (each of these has one value)."""
    kept, given = [], {word for word in rest if word.startswith("--")}
    if "--device" in given:
        given.add("--gpu-index")
    for i, word in enumerate(line):
        if word not in given and (i == 0 or line[i - 1] not in given):
            kept.append(word)
    return [*kept, *rest]


def worker(args) -> int:
    program = find_program(args.dry_run)
    flags, why = node_flags(usable_gpus(program))
    line = [program, "worker", "--port", args.port, *flags]
    if args.secret_file:
        line += ["--secret-file", args.secret_file]
    say(why)
    return start(with_rest(line, args.rest), args.dry_run)
