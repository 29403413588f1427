"""Whether `evenkeel.clip_grad_norm_` is right on a GPU, and how long it takes beside torch's own clipping.

    python benchmarks/gpu/clipping.py [--repeat 20] [--markdown]

First the checks, each of which ends the program if it fails: norms and scaled entries against float64, for every
dtype, order and memory layout; no waiting for the device (`torch.cuda.set_sync_debug_mode("error")`); a step captured
in a CUDA graph and replayed with other gradients; as many kernel launches for many tensors as for few.

Then times of each call alone, on the device (CUDA events). Copies queued before the call keep the device busy while
the host prepares the launches, as the backward pass does in training; how long the host takes stands apart. Ours and
torch's take turns, and gradients are drawn anew between calls. A ratio is the median over the rounds of (ours / torch's
in the same round). "Bytes allow" divides the bytes that a call must move (all gradients read once for the norms; those
that are clipped read and written once more) by the bandwidth of a large copy, measured in the same process.
Without a GPU the program says so and ends with exit code 2.
"""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import evenkeel as ek
from evenkeel.clipping.gpu import Segments, available

MaxNorm = float | Mapping[str, float]
LARGE = 1e9  # a threshold above every norm
EVERYTHING = 1e-2
LITTLE = {"layer.5.*": EVERYTHING, "*": LARGE}  # one layer of 24 or 32
ASKED = {"little": 0.7, "everything": 1.0}
COLUMNS = (
    *("gradients", "clipped", "ours, ms", "torch, ms", "ours / torch", "asked", "bytes allow, ms", "ours / allowed"),
    *("asked ", "host, ms", "launches"),
)


class CheckError(Exception):
    """A check found something wrong."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with gradients.

    Attributes:
        name: what the table calls it.
        model: parameters of the real sizes; only their gradients matter.
    """

    name: str
    model: nn.Module

    @property
    def grads(self) -> list[Tensor]:
        """The gradients of all parameters."""
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]


def bert_large(dtype: torch.dtype) -> Subject:
    """Build BERT-large for classification: 393 gradients."""
    from transformers import AutoModelForSequenceClassification, BertConfig

    config = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    return _subject("BERT-large", lambda: AutoModelForSequenceClassification.from_config(config), dtype)  # type: ignore[no-untyped-call]


def llama_7b(dtype: torch.dtype) -> Subject:
    """Build a model of the sizes of Llama 7B: 291 gradients."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008)
    return _subject("Llama 7B", lambda: AutoModelForCausalLM.from_config(config), dtype)  # type: ignore[no-untyped-call]


def _subject(name: str, make: Callable[[], nn.Module], dtype: torch.dtype) -> Subject:
    with torch.device("meta"):
        model = make().to(dtype)
    model.to_empty(device="cuda")
    fill(model)
    return Subject(name=f"{name}, {str(dtype).removeprefix('torch.')}", model=model)


def fill(model: nn.Module, *, seed: int = 0) -> None:
    """Give every parameter a new gradient, whose norm is far above the thresholds."""
    generator = torch.Generator("cuda").manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter).normal_(generator=generator)


# --- checks


def check(holds: bool, what: str) -> None:
    """End the program if ``holds`` is false."""
    if not holds:
        raise CheckError(what)


def check_layouts() -> None:
    """Compare the kernels with float64 for dtypes, orders and layouts, NaN and infinity among them."""
    layouts: dict[str, Callable[[Tensor], Tensor]] = {
        "run": lambda x: x.flatten(),
        "unaligned run": lambda x: x.flatten()[1:-2],
        "columns": lambda x: x[:, 512:1024],
        "ragged columns": lambda x: x[:, 5:700],
        "transposed": lambda x: x.t(),
        "every second": lambda x: x[:, ::2],
        "interleaved heads": lambda x: x.unfold(0, 64, 192),
        "one entry": lambda x: x[3, 4],
        "none": lambda x: x[:0],
    }
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        tensors = [view(1e-2 * torch.randn(1921, 1536, device="cuda").to(dtype)) for view in layouts.values()]
        poisoned = [torch.full((70_001,), 0.5, device="cuda", dtype=dtype) for _ in range(2)]
        poisoned[0][-1], poisoned[1][33] = math.nan, -math.inf
        tensors += poisoned
        count = len(tensors) + 1  # the last component owns nothing
        segments = Segments(tensors, list(range(count - 1)), count)
        for order in (0.5, 1.0, 2.0, 3.0, math.inf):
            norms = segments.norms(tensors, order)
            check(torch.equal(norms.nan_to_num(), segments.norms(tensors, order).nan_to_num()), "not the same twice")
            for name, tensor, norm in zip([*layouts, "NaN", "infinity"], tensors, norms.tolist(), strict=False):
                whole = tensor.double().flatten()
                exact = torch.linalg.vector_norm(whole, order).item() if whole.numel() else 0.0
                same = norm == exact or math.isclose(norm, exact, rel_tol=1e-6) or (norm != norm and exact != exact)
                check(same, f"norm of {name}, {dtype}, order {order}: {norm}, not {exact}")
            check(norms[-1].item() == 0.0, "the norm of nothing is not 0")
        check_scaling(segments, tensors, list(layouts), count)


def check_scaling(segments: Segments, tensors: list[Tensor], names: list[str], count: int) -> None:
    """Compare scaled entries with the product in float64; see that 1 keeps bits and that silenced ones are zeros."""
    before = [tensor.clone() for tensor in tensors]
    factors = torch.full((count,), 0.3, device="cuda")
    factors[1::3] = 1.0
    silenced = torch.zeros(count, dtype=torch.bool, device="cuda")
    silenced[len(names) : len(names) + 2] = True  # NaN and infinity
    segments.scale_(tensors, factors, silenced)
    values = factors.double().tolist()
    for name, old, new, factor in zip(names, before, tensors, values, strict=False):
        exact = old if factor == 1.0 else (old.double() * factor).to(old.dtype)
        # float32 products are rounded once more on their way to half precision, which may move a tie by one step.
        step = torch.finfo(old.dtype).eps if old.dtype in (torch.float16, torch.bfloat16) else 0.0
        least = torch.finfo(old.dtype).smallest_normal * step
        near = torch.equal(new, exact) if factor == 1.0 else torch.allclose(new.double(), exact.double(), step, least)
        check(near or torch.allclose(new, exact, 2e-7, 0.0), f"entries of {name}, {old.dtype}, scaled by {factor}")
    for tensor in tensors[len(names) :]:
        check(not tensor.count_nonzero().item(), "what was silenced is not zero")


def check_model(subject: Subject) -> None:
    """Clip a model and compare norms and entries with float64, where all of it is clipped and where little is."""
    parameters = dict(subject.model.named_parameters())
    parts = ek.components(subject.model)
    for max_norm in (EVERYTHING, LITTLE):
        fill(subject.model)
        grads = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        before = {name: grads[name].clone() for name in (parts[0].name, parts[40].name, parts[-1].name)}
        exact = torch.stack([torch.linalg.vector_norm(grads[part.name], dtype=torch.float64) for part in parts])
        result = ek.clip_grad_norm_(parts, max_norm=max_norm)
        worst = ((result.norms.double() - exact) / exact).abs().max().item()
        check(worst < 1e-5, f"a norm of {subject.name} is off by {worst:.1e}")
        for index, part in enumerate(parts):
            if part.name in before:
                expected = before[part.name].double() * result.coefficients[index].double()
                step = 2 * torch.finfo(grads[part.name].dtype).eps
                check(torch.allclose(grads[part.name].double(), expected, step, 0.0), f"entries of {part.name}")


def check_no_waiting(subject: Subject) -> None:
    """Clip without one synchronisation: where gradients lie where they lay, where they moved, and for other orders."""
    parts = ek.components(subject.model)
    for norm_type in (2.0, 1.0, math.inf):
        ek.clip_grad_norm_(parts, max_norm=EVERYTHING, norm_type=norm_type)  # compiles; makes the tables
    elsewhere = [torch.empty_like(grad) for grad in subject.grads]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for norm_type in (2.0, 1.0, math.inf):
            ek.clip_grad_norm_(parts, max_norm=EVERYTHING, norm_type=norm_type)
        for parameter, grad in zip(subject.model.parameters(), elsewhere, strict=True):
            parameter.grad = grad.fill_(1.0)
        ek.clip_grad_norm_(parts, max_norm=EVERYTHING)
        ek.clip_grad_norm_(parts, max_norm=LITTLE, nonfinite="zero")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_graph() -> None:
    """Capture a step, replay it with other gradients, and compare with the same step outside of the graph.

    Between the replays gradients move and a step runs outside of the graph, which must not disturb it.
    """
    model = nn.Sequential(*(nn.Linear(257, 257) for _ in range(20))).cuda()
    fill(model)
    parts = ek.components(model)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ek.clip_grad_norm_(parts, max_norm=EVERYTHING)
    torch.cuda.current_stream().wait_stream(side)
    captured = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ek.clip_grad_norm_(parts, max_norm=EVERYTHING)
    for seed in (1, 2):
        fill(model, seed=seed)
        fresh = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch._foreach_copy_(captured, fresh)
        outside = ek.clip_grad_norm_(parts, max_norm=EVERYTHING)
        graph.replay()
        check(torch.equal(result.norms, outside.norms), "the graph's norms are others")
        check(all(map(torch.equal, captured, fresh)), "the graph's gradients are others")


def launches(model: nn.Module, max_norm: MaxNorm) -> int:
    """Return how many kernels one call launches."""
    parts = ek.components(model)
    ek.clip_grad_norm_(parts, max_norm=max_norm)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        ek.clip_grad_norm_(parts, max_norm=max_norm)
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if str(event.device_type).endswith("CUDA")]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_device)


def check_launches() -> None:
    """See that 300 tensors launch as many kernels as 4."""
    counts = []
    for layers in (2, 150):
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers))).cuda()
        fill(model)
        counts.append(launches(model, EVERYTHING))
    check(counts[0] == counts[1], f"{counts[0]} kernels for 4 tensors, but {counts[1]} for 300")


# --- times


def milliseconds(call: Callable[[], object], ahead: Callable[[], object] = lambda: None) -> tuple[float, float]:
    """Return how long a call takes: on the device, which does ``ahead`` first, and until the host goes on."""
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    ahead()
    begin.record()
    begun = time.perf_counter()
    call()
    host = 1000 * (time.perf_counter() - begun)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end), host


def copy_bandwidth(repeat: int) -> float:
    """Return bytes read and written per millisecond by a copy of 2 GiB."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source))[0] for _ in range(repeat + 3)][3:]
    return 2 * source.numel() / statistics.median(times)


def measure(subject: Subject, clipped: str, repeat: int, bandwidth: float) -> tuple[str, ...]:
    """Return a row of the table."""
    max_norm: MaxNorm = EVERYTHING if clipped == "everything" else LITTLE
    parts = ek.components(subject.model)
    fill(subject.model)
    grads = subject.grads

    def ours() -> object:
        return ek.clip_grad_norm_(parts, max_norm=max_norm)

    def torchs() -> object:  # one coefficient for everything; it multiplies whatever the norm is
        return nn.utils.clip_grad_norm_(subject.model.parameters(), EVERYTHING, foreach=True)

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def busy() -> None:
        for _ in range(20):
            target.copy_(source)

    rounds = []
    for turn in range(repeat + 3):
        timed = []
        for call in (ours, torchs) if turn % 2 else (torchs, ours):
            fill_again(grads)
            timed.append(milliseconds(call, busy))
        rounds.append(timed if turn % 2 else timed[::-1])
    device, host = zip(*(own for own, _ in rounds[3:]), strict=True)
    reference = [other[0] for _, other in rounds[3:]]
    ratios = [own / other for own, other in zip(device, reference, strict=True)]
    fill_again(grads)
    coefficients = ek.clip_grad_norm_(parts, max_norm=max_norm).coefficients.tolist()
    total, touched = moved_bytes(parts, coefficients, grads[0].dtype.itemsize)
    allowed = (total + 2 * touched) / bandwidth
    return (
        subject.name,
        f"{clipped} ({touched / total:.1%})",
        spread(device),
        spread(reference),
        f"{statistics.median(ratios):.2f}",
        f"{ASKED[clipped]:.1f}",
        f"{allowed:.3f}",
        f"{statistics.median(device) / allowed:.2f}",
        "1.25",
        f"{statistics.median(host):.2f}",
        str(launches(subject.model, max_norm)),
    )


def fill_again(grads: list[Tensor]) -> None:
    """Bring gradients back to norms above every small threshold, in place."""
    with torch.no_grad():
        for grad in grads:
            grad.normal_()


def moved_bytes(parts: ek.Components, coefficients: list[float], itemsize: int) -> tuple[int, int]:
    """Return the bytes of all components, and of those that were scaled."""
    total = sum(part.size for part in parts)
    touched = sum(part.size for part, coefficient in zip(parts, coefficients, strict=True) if coefficient != 1.0)
    return total * itemsize, touched * itemsize


def spread(times: tuple[float, ...] | list[float]) -> str:
    """Return the median, and the fastest and the slowest."""
    return f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"


# --- what is printed


def versions() -> str:
    """Return device, versions and date."""
    import triton  # type: ignore[import-untyped, unused-ignore]

    today = datetime.datetime.now(tz=datetime.UTC).date()
    name = torch.cuda.get_device_name()
    return f"{name}; torch {torch.__version__}, triton {triton.__version__}, evenkeel {ek.__version__}; {today}"


def show(rows: list[tuple[str, ...]], *, markdown: bool) -> None:
    """Print the table."""
    if markdown:
        print("| " + " | ".join(name.strip() for name in COLUMNS) + " |")
        print("|" + " --- |" * 2 + " ---: |" * (len(COLUMNS) - 2))
        for row in rows:
            print("| " + " | ".join(row) + " |")
        return
    table = Table()
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=180).print(table)


def subjects() -> list[Callable[[], Subject]]:
    """Return what is measured, to be built one after the other; the large one only where there is memory for it."""
    chosen = [lambda: bert_large(torch.float32), lambda: bert_large(torch.bfloat16)]
    free, _ = torch.cuda.mem_get_info()
    if free > 48 * 2**30:  # parameters, gradients and gradients elsewhere, of 13 GiB each
        chosen.append(lambda: llama_7b(torch.bfloat16))
    else:
        print(f"Llama 7B is left out: it needs 48 GiB, and {free / 2**30:.0f} GiB are free")
    return chosen


def main() -> int:
    """Check, measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20, help="rounds that are counted")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here: this program measures the kernels on one.", file=sys.stderr)
        return 2
    if not available(torch.device("cuda")):
        print("The kernels need Triton, not interpreted, and a GPU of capability 8.0 or more.", file=sys.stderr)
        return 2
    print(versions())
    for checking in (check_layouts, check_graph, check_launches):
        checking()
        print(f"ok: {checking.__name__}")
    bandwidth = copy_bandwidth(arguments.repeat)
    rows = []
    for build in subjects():
        subject = build()
        check_model(subject)
        check_no_waiting(subject)
        print(f"ok: norms, entries and no waiting: {subject.name}, {len(subject.grads)} gradients", flush=True)
        rows += [measure(subject, clipped, arguments.repeat, bandwidth) for clipped in ("little", "everything")]
        del subject
        torch.cuda.empty_cache()
    print(f"copy bandwidth: {bandwidth / 1e9:.2f} TB/s, bytes read and written")
    show(rows, markdown=arguments.markdown)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckError as failure:
        print(f"failed: {failure}", file=sys.stderr)
        sys.exit(1)
