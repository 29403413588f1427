"""Whether AdamW with clipping inside its update is right on a GPU, and how long a step takes beside torch's.

    python benchmarks/gpu/optim.py [--repeat 20] [--markdown]

First the checks, each of which ends the program if it fails: one update against float64, for every dtype and memory
layout, wherever the four tensors lie, with silenced components, and with `found_inf`, which must leave every bit;
several steps against `evenkeel.clip_grad_norm_` and `torch.optim.AdamW(fused=True)`, components that own columns of a
tensor among them; no waiting for the device (`torch.cuda.set_sync_debug_mode("error")`); a step captured in a CUDA
graph and replayed with other gradients; as many kernel launches for many tensors as for few.

Then times of a step alone, on the device (CUDA events), whose steps take turns; gradients are drawn anew between calls
and everything is clipped. Copies queued before the call keep the device busy while the host prepares the launches, as
the backward pass does in training; how long the host takes stands apart. Times are medians, with quartiles in brackets;
a ratio is the median over the rounds of (this step's / the other's in the same round). "Bytes allow" divides the bytes
that a step must move by the bandwidth of a large copy, measured in the same process: AdamW reads four tensors and
writes three, the norms read one, and scaling reads and writes one. Without a GPU the program says so and ends with exit
code 2.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import evenkeel as ek
from clipping import CheckError, Subject, bert_large, check, copy_bandwidth, fill, fill_again, milliseconds, versions
from evenkeel.clipping import clip_coefficients
from evenkeel.clipping.gpu import available, upload
from evenkeel.optim.gpu import AdamWSegments

DEVICE = torch.device("cuda")
MAX_NORM = 1e-2  # below every norm
RATE, BETAS, EPS, DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
COLUMNS = (
    *("model", "step", "device, ms", "/ plain", "/ torch, clipped", "bytes allow, ms", "time / allowed"),
    *("host, ms", "launches"),
)
Roles = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def numbers(step: int) -> list[float]:
    """Return what `AdamWSegments.step_` takes as numbers."""
    first, second = (1 - beta**step for beta in BETAS)
    return [1 - RATE * DECAY, 1 - BETAS[0], BETAS[1], 1 - BETAS[1], RATE / first, math.sqrt(second), EPS]


class Ours:
    """A bare optimizer around the kernels.

    Args:
        parts: the components; every parameter must have a gradient.
    """

    def __init__(self, parts: ek.Components) -> None:
        self.parts = parts
        self.steps = 0
        self._pieces = [(owner, piece) for owner, part in enumerate(parts) for piece in part.pieces]
        self.state = {
            piece.tensor(): (torch.zeros_like(piece.tensor()), torch.zeros_like(piece.tensor()))
            for _, piece in self._pieces
        }
        self._segments: AdamWSegments | None = None

    def roles(self) -> Roles:
        """Return parameters, gradients, first and second moments: views of what each component owns."""
        found: Roles = ([], [], [], [])
        for _, piece in self._pieces:
            parameter = piece.tensor()
            four = (parameter.detach(), gradient(parameter), *self.state[parameter])
            for tensors, tensor in zip(found, four, strict=True):
                tensors.extend(piece.of(tensor))
        return found

    def step(self, table: Tensor | None = None) -> None:
        """Clip and update; with numbers that lie on the device already, or with those of the next step."""
        self.steps += 1
        if table is None:
            table = upload(torch.tensor(numbers(self.steps), dtype=torch.float64), DEVICE)
        roles = self.roles()
        if self._segments is None or not self._segments.fits(*roles):
            self._segments = AdamWSegments(roles[0], [owner for owner, _ in self._pieces], len(self.parts))
        coefficients = clip_coefficients(self.parts, MAX_NORM).coefficients
        self._segments.step_(*roles, numbers=table, coefficients=coefficients)


def gradient(parameter: Tensor) -> Tensor:
    """Return what every parameter has here."""
    if parameter.grad is None:
        raise CheckError("a parameter has no gradient")
    return parameter.grad


def torchs(model: nn.Module) -> torch.optim.AdamW:
    """Return torch's optimizer with the same settings."""
    return torch.optim.AdamW(model.parameters(), RATE, BETAS, EPS, DECAY, fused=True)


# --- checks

ROWS, WIDTH = 1921, 1536
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
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


def drawn(layout: Callable[[Tensor], Tensor], dtype: torch.dtype, shift: int) -> list[Tensor]:
    """Return a parameter, its gradient, which lies ``shift`` entries further in its memory, and its moments."""
    found = []
    for scale, begin in zip((1.0, 1e-1, 1e-1, 1e-1), (0, shift, 0, 0), strict=True):
        entries = torch.randn(ROWS * WIDTH + begin, device=DEVICE)
        found.append(layout((scale * entries).to(dtype)[begin:].view(ROWS, WIDTH)))
    found[3].abs_()
    return found


def check_layouts() -> None:
    """Compare one update with float64 for dtypes, layouts and alignments, with one component silenced."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for shift in (0, 1):
            each = [drawn(layout, dtype, shift) for layout in LAYOUTS.values()]
            each[2][1].fill_(math.nan)  # "columns", which is silenced
            before = [[tensor.clone() for tensor in four] for four in each]
            roles = [list(role) for role in zip(*each, strict=True)]
            count = len(each)
            segments = AdamWSegments(roles[0], range(count), count)
            check(segments.fits(*roles), "what it was made for does not fit")
            table = torch.tensor(numbers(3), dtype=torch.float64, device=DEVICE)
            factors = torch.linspace(0.1, 1.0, count, device=DEVICE)
            silenced = torch.zeros(count, dtype=torch.bool, device=DEVICE)
            silenced[2] = True
            for found in (1.0, math.nan):
                inf = torch.full((1,), found, device=DEVICE)
                segments.step_(*roles, numbers=table, coefficients=factors, silenced=silenced, found_inf=inf)
                for four, old in zip(each, before, strict=True):
                    check(
                        all(map(same_bits, four, old)), f"{dtype}: something was written although found_inf is {found}"
                    )
            inf = torch.zeros((), device=DEVICE)
            segments.step_(*roles, numbers=table, coefficients=factors, silenced=silenced, found_inf=inf)
            for index, name in enumerate(LAYOUTS):
                factor = 0.0 if index == 2 else factors[index].item()
                compare(f"{name}, {dtype}, shift {shift}", each[index], before[index], factor)


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same, NaN included."""
    return torch.equal(
        left.contiguous().reshape(-1).view(torch.uint8), right.contiguous().reshape(-1).view(torch.uint8)
    )


def compare(what: str, after: Sequence[Tensor], before: Sequence[Tensor], factor: float) -> None:
    """Compare an update with the definition in float64."""
    check(same_bits(after[1], before[1]), f"the gradient of {what} was written")
    decay, fresh, kept, fresh_square, size, root, eps = numbers(3)
    p, g, m, v = (tensor.double() for tensor in before)
    g = g * factor if factor else torch.zeros_like(g)
    m = m + (g - m) * fresh
    v = v * kept + fresh_square * g * g
    p = p * decay - size * m / (v.sqrt() / root + eps)
    near = {torch.float64: 1e-13, torch.float32: 2e-6}.get(after[0].dtype, torch.finfo(after[0].dtype).eps)
    least = {torch.float16: 2.0**-24}.get(after[0].dtype, 0.0)  # a step below its normal numbers
    for name, found, exact in zip(
        ("parameter", "first moment", "second moment"), (after[0], *after[2:]), (p, m, v), strict=True
    ):
        largest = exact.abs().max().item() if exact.numel() else 0.0
        close = torch.allclose(found.double(), exact, near, max(near * largest, least))
        check(close, f"{name} of {what}")


def small(dtype: torch.dtype) -> nn.Module:
    """Build a GPT-2, whose query, key and value are columns of one tensor."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=192, n_layer=2, n_head=4, vocab_size=500, n_positions=64, bos_token_id=0, eos_token_id=0)
    model: nn.Module = GPT2LMHeadModel(config)
    return model.to(DEVICE, dtype)


def draw(model: nn.Module, seed: int) -> None:
    """Give every parameter a new gradient."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter).normal_(generator=generator)


def check_steps() -> None:
    """Compare ten steps with clipping in place and torch's fused update."""
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float64, 1e-5)):
        model, other = small(dtype), small(dtype)
        ours, reference = Ours(ek.components(model)), torchs(other)
        check(any(part.pieces[0].spans for part in ours.parts), "no component is a part of a tensor")
        for seed in range(10):
            draw(model, seed)
            draw(other, seed)
            ours.step()
            ek.clip_grad_norm_(ek.components(other), max_norm=MAX_NORM)
            reference.step()
        for (name, found), exact in zip(model.named_parameters(), other.parameters(), strict=True):
            state = reference.state[exact]
            expected = (exact, state["exp_avg"], state["exp_avg_sq"])
            for one, two in zip((found, *ours.state[found]), expected, strict=True):
                largest = two.abs().max().item()
                check(torch.allclose(one, two, near, near * largest), f"{name}, {dtype}, after ten steps")


def check_no_waiting() -> None:
    """Step without one synchronisation, where gradients lie where they lay and where they moved."""
    model = small(torch.float32)
    ours = Ours(ek.components(model))
    draw(model, 0)
    ours.step()  # compiles; makes the tables
    kept = [parameter.grad for parameter in model.parameters()]
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours.step()
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter).normal_()
        ours.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    del kept


def check_graph() -> None:
    """Capture a step, replay it with other gradients and numbers, and compare with the same steps outside of a graph.

    Between the replays gradients move and a step runs outside of the graph, which must not disturb it.
    """
    model, other = small(torch.bfloat16), small(torch.bfloat16)
    ours, outside = Ours(ek.components(model)), Ours(ek.components(other))
    table = torch.tensor(numbers(1), dtype=torch.float64, device=DEVICE)
    draw(model, 0)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ours.step(table)
    torch.cuda.current_stream().wait_stream(side)
    draw(other, 0)
    outside.step()
    captured = [gradient(parameter) for parameter in model.parameters()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step(table)
    for seed in (1, 2):
        draw(other, seed)
        torch._foreach_copy_(captured, [gradient(parameter) for parameter in other.parameters()])
        outside.step()
        table.copy_(torch.tensor(numbers(outside.steps), dtype=torch.float64))
        graph.replay()
        pairs = zip(model.parameters(), other.parameters(), strict=True)
        check(all(torch.equal(one, two) for one, two in pairs), "the graph's parameters are others")


def launches(step: Callable[[], object]) -> int:
    """Return how many kernels a step launches."""
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if str(event.device_type).endswith("CUDA")]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_device)


def check_launches() -> None:
    """See that 300 tensors launch as many kernels as 4."""
    counts = []
    for layers in (2, 150):
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers))).to(DEVICE)
        draw(model, 0)
        counts.append(launches(Ours(ek.components(model)).step))
    check(counts[0] == counts[1], f"{counts[0]} kernels for 4 tensors, but {counts[1]} for 300")


# --- times


@dataclass(frozen=True, kw_only=True)
class Step:
    """A way to make a step.

    Attributes:
        name: what the table calls it.
        run: makes it.
        moved: how many times the bytes of all parameters it must move.
    """

    name: str
    run: Callable[[], object]
    moved: int


def steps(model: nn.Module) -> list[Step]:
    """Return the steps that are compared: the first is plain, the second torch's with clipping."""
    reference, parts = torchs(model), ek.components(model)
    ours = Ours(parts)

    def torch_clipped() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM, foreach=True)
        reference.step()

    def evenkeel_clipped() -> None:
        ek.clip_grad_norm_(parts, max_norm=MAX_NORM)
        reference.step()

    return [
        Step(name="AdamW(fused), not clipped", run=reference.step, moved=7),
        Step(name="torch clipping, AdamW(fused)", run=torch_clipped, moved=10),
        Step(name="evenkeel clipping, AdamW(fused)", run=evenkeel_clipped, moved=10),
        Step(name="evenkeel clipping inside AdamW", run=ours.step, moved=8),
    ]


def measure(subject: Subject, repeat: int, bandwidth: float) -> Iterator[tuple[str, ...]]:
    """Yield the model's rows of the table."""
    ways = steps(subject.model)
    total = sum(parameter.numel() * parameter.itemsize for parameter in subject.model.parameters())
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)

    def busy() -> None:
        for _ in range(20):
            target.copy_(source)

    device: list[list[float]] = [[] for _ in ways]
    host: list[list[float]] = [[] for _ in ways]
    for turn in range(repeat + 3):
        for place in range(len(ways)):
            index = (place + turn) % len(ways)
            fill_again(subject.grads)
            times = milliseconds(ways[index].run, busy)
            if turn >= 3:
                device[index].append(times[0])
                host[index].append(times[1])
    for way, there, here in zip(ways, device, host, strict=True):
        ratios = [statistics.median(map(float.__truediv__, there, other)) for other in device[:2]]
        allowed = way.moved * total / bandwidth
        yield (
            subject.name,
            way.name,
            spread(there),
            *(f"{ratio:.2f}" for ratio in ratios),
            f"{allowed:.3f}",
            f"{statistics.median(there) / allowed:.2f}",
            f"{statistics.median(here):.2f}",
            str(launches(way.run)),
        )


def spread(times: Sequence[float]) -> str:
    """Return the median and the quartiles."""
    first, middle, third = statistics.quantiles(times, n=4)
    return f"{middle:.3f} ({first:.3f} to {third:.3f})"


def llama_1b(dtype: torch.dtype) -> Subject:
    """Build a Llama of the sizes of TinyLlama, 1.1B parameters: 201 gradients."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=2048, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4, intermediate_size=5632
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config).to(dtype)  # type: ignore[no-untyped-call]
    model.to_empty(device=DEVICE)
    fill(model)
    return Subject(name=f"Llama 1.1B, {str(dtype).removeprefix('torch.')}", model=model)


def show(rows: list[tuple[str, ...]], *, markdown: bool) -> None:
    """Print the table."""
    if markdown:
        print("| " + " | ".join(COLUMNS) + " |")
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


def main() -> int:
    """Check, measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20, help="rounds that are counted")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here: this program measures the kernels on one.", file=sys.stderr)
        return 2
    if not available(DEVICE):
        print("The kernels need Triton, not interpreted, and a GPU of capability 8.0 or more.", file=sys.stderr)
        return 2
    print(versions())
    for checking in (check_layouts, check_steps, check_no_waiting, check_graph, check_launches):
        checking()
        print(f"ok: {checking.__name__}", flush=True)
    bandwidth = copy_bandwidth(arguments.repeat)
    rows: list[tuple[str, ...]] = []
    builders: list[Callable[[], Subject]] = [lambda: bert_large(torch.float32), lambda: llama_1b(torch.bfloat16)]
    for build in builders:
        subject = build()
        with torch.no_grad():
            for parameter in subject.model.parameters():
                parameter.normal_(std=0.02)
        rows += measure(subject, arguments.repeat, bandwidth)
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
