"""dllama's flags for a model on this machine, and why."""

from . import machine
from .errors import LaunchError
from .machine import Gpu, equal_gpus, gb
from .models import DEFAULT_CONTEXT, SPARE_BYTES, Model
from .places import ME


def choose_gpus(found: list[Gpu], weights: float, cache: float) -> list[Gpu]:
    """The GPUs for a model of so many bytes: the first that holds it, else all equal ones if they hold it together."""
    for gpu in found:
        if gpu.free > weights + cache + SPARE_BYTES:
            return [gpu]
    group = equal_gpus(found)
    share = (weights + cache) / max(1, len(group))
    return group if len(group) > 1 and all(gpu.free > share + SPARE_BYTES for gpu in group) else []


def gpu_flags(chosen: list[Gpu]) -> list:
    """dllama itself takes the first GPU, if it has room."""
    if not chosen or [gpu.index for gpu in chosen] == [0]:
        return []
    return ["--gpu-index", ",".join(str(gpu.index) for gpu in chosen)]


def thread_flags() -> tuple[list, str]:
    physical, threads = machine.cores()
    why = f"{physical} threads, one for each {'physical core' if physical < threads else 'core'}"
    return ["--nthreads", physical], why


def choose_flags(model: Model, weights: float, in_cluster: bool, found: list[Gpu]) -> tuple[list, str]:
    """Flags for this machine with these GPUs, and why; `weights` are the file's bytes. Raises LaunchError if it does
    not fit."""
    if in_cluster:
        return node_flags(found)
    flags, why = thread_flags()
    if weights == 0:
        return flags, why
    total, available = machine.memory_bytes()
    context, kv = min(model.context, DEFAULT_CONTEXT), model.kv_bytes_per_token
    # A GPU with a shorter context before the CPU with a longer one.
    lengths = [context, *(n for n in (4096, 2048) if n < context)]
    fitting = ((n, choose_gpus(found, weights, kv * n)) for n in lengths)
    context, chosen = next(((n, some) for n, some in fitting if some), (context, []))
    flags += gpu_flags(chosen)
    room = sum(gpu.free for gpu in chosen) if chosen else available
    while kv and not chosen and context > 512 and weights + kv * context + SPARE_BYTES > room:
        context //= 2
    if weights + kv * context + SPARE_BYTES > room:
        on_gpu = f", {gb(max(gpu.free for gpu in found))} on a GPU" if found else ""
        raise LaunchError(
            f"{model.name} needs {gb(weights + kv * context + SPARE_BYTES)} of memory, "
            f"{gb(available)} of {gb(total)} are available{on_gpu}: "
            f"add machines ({ME} setup-cluster {model.name} --nodes ...), or --force"
        )
    where = f"{gb(room)} of {gpu_names(chosen)}" if chosen else f"{gb(room)} of memory"
    if not kv:
        return flags, f"{why}; {gb(weights)} of weights in {where}"
    why += f"; context {context}: {gb(weights)} of weights and {gb(kv * context)} of cache in {where}"
    return [*flags, "--max-seq-len", context], why


def node_flags(found: list[Gpu]) -> tuple[list, str]:
    """Flags of a cluster's node, and why: what its share of the model will be is not known here."""
    flags, why = thread_flags()
    group = equal_gpus(found)
    chosen = gpu_flags(group) if len(group) > 1 else []
    return flags + chosen, f"{why}; {gpu_names(group)}" if chosen else why


def gpu_names(chosen: list[Gpu]) -> str:
    return f"{len(chosen)} x {chosen[0].name}" if len(chosen) > 1 else chosen[0].name
