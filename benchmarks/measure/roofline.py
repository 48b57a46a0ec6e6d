"""Compare models with the limits of this machine and find the ops that hold them back: results/roofline.json.

    python -m benchmarks.measure.roofline          the s12 model of each mixer, both modes and precisions
    python -m benchmarks.measure.roofline --models ninformer_cifar --batch 128 --size 32 --ops 20 --output nin.json

The limits are the speeds of a matrix product, a 1x1 convolution that computes this product, a 3x3 convolution and a
copy of a map, all interleaved with the model. The convolutions run in channels_last. A model's GFLOP/s are
2 * MACs * images (3 times that in training) divided by its median step time. `of_convolution` is the ratio of these
GFLOP/s to the GFLOP/s of the faster convolution.

Then each ATen op except views is timed in a few more steps. Its limit is the time for its floating-point operations at
the speed of the faster convolution, or for the bytes of its inputs and outputs at the speed of the copy, whichever is
longer. Ops are sorted by `lost_ms`, the time above that limit. An op whose inputs are in the cache may be faster than
its limit.
"""

import argparse
import time
import warnings
from collections import defaultdict
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.markdown import table
from benchmarks.measure import reference_models, timing
from benchmarks.measure.speed import MODELS
from benchmarks.measure.timing import Subject, add_cells
from benchmarks.paths import RESULTS
from metamix.models import count_macs
from metamix.utils.system import keep_freed_memory
from metamix.utils.timing import interleaved

# torch counts the operations of matrix products, convolutions and attention, except for fused attention on CPUs.
FLOP = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)
    ),
}
KEY = ("model", "mode", "precision", "batch", "size")  # entries that tell rows of the result file apart
PASSES = 3  # number of passes over which the times of ops are averaged
# Names of the modules, ours and timm's, that make up each part of a model. Other parts are "optimizer" and "rest".
PARTS = {
    "mixer": ("mixer", "token_mixer", "attn", "mlp_tokens"),
    "channel MLP": ("mlp", "mlp_channels"),
    "norms": ("norm", "norm1", "norm2"),
    "embeddings": ("stem", "downsample", "patch_embed"),
}
# Modules that take the images. No hook runs at the end of their backward pass, because images have no gradient, so
# their time ends when the optimizer starts.
FIRST = ("stem", "patch_embed")


def roofs(precision: str, device: str) -> dict[str, tuple]:
    """Return {name: (step, amount)}; the amount is the FLOP of one step, or the bytes of the copy."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    place = dict(dtype=dtype, device=device)
    batch, side, dim = 8, 28, 512
    tokens, weight = torch.randn(batch * side**2, dim, **place), torch.randn(dim, dim, **place)
    channels_last = dict(memory_format=torch.channels_last)
    maps = tokens.view(batch, side, side, dim).permute(0, 3, 1, 2)
    narrow = maps[:, :128].contiguous(**channels_last)
    kernel = torch.randn(128, 128, 3, 3, **place).to(**channels_last)
    target = torch.empty_like(tokens)
    steps = {
        "matrix product": (lambda: tokens @ weight, 2 * tokens.numel() * dim),
        "conv 1x1": (lambda: F.conv2d(maps, weight[..., None, None]), 2 * tokens.numel() * dim),
        "conv 3x3": (lambda: F.conv2d(narrow, kernel, padding=1), 2 * narrow.numel() * 9 * 128),
        "copy": (lambda: target.copy_(tokens), 2 * tokens.nbytes),
    }

    def synchronized(step):
        def run():
            with torch.inference_mode():
                step()
                if device == "cuda":
                    torch.cuda.synchronize()

        return run

    return {name: (synchronized(step), amount) for name, (step, amount) in steps.items()}


class OpTimer(TorchDispatchMode):
    """Sum seconds, FLOP, bytes and calls of each op by (part of the model, op, shapes of its inputs)."""

    def __init__(self, subject: Subject):
        super().__init__()
        self.device = subject.device
        self.sums = defaultdict(lambda: [0.0, 0, 0, 0])
        self.part = "rest"
        self.hooks = []
        self.follow(subject.model)
        self.hooks.append(subject.optimizer.register_step_pre_hook(self.enter("optimizer")))
        self.hooks.append(subject.optimizer.register_step_post_hook(self.enter("rest")))

    def follow(self, module: torch.nn.Module) -> None:
        """Hook the outermost modules named in PARTS, to know which part is running."""
        for name, child in module.named_children():
            part = next((part for part, names in PARTS.items() if name in names), None)
            if part is None:
                self.follow(child)
                continue
            enter, leave = self.enter(part), self.enter("rest")
            self.hooks += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]
            self.hooks.append(child.register_full_backward_pre_hook(enter))
            if name not in FIRST:
                self.hooks.append(child.register_full_backward_hook(leave))

    def enter(self, part: str):
        def hook(*_):
            self.part = part

        return hook

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        return super().__exit__(*error)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        start = time.perf_counter()
        out = op(*args, **kwargs)
        if self.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if not op.is_view:
            inputs, outputs = tensors((args, kwargs)), tensors(out)
            shapes = " ".join("x".join(map(str, t.shape)) for t in inputs if t.ndim)
            count = FLOP.get(op.overloadpacket)
            flop = count(*args, **kwargs, out_val=out) if count else 0
            sums = self.sums[self.part, label(op, args), shapes]
            for i, value in enumerate((seconds, flop, sum(t.nbytes for t in inputs + outputs), 1)):
                sums[i] += value
        return out


def tensors(values) -> list[torch.Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


def label(op, args) -> str:
    """Return the op's name, and for a convolution also its kind and the size of its kernel."""
    name = op.overloadpacket.__name__
    if name not in ("convolution", "convolution_backward"):
        return name
    weight, groups = args[1 if name == "convolution" else 2], args[8 if name == "convolution" else 9]
    kind = "grouped " if groups > 1 else "transposed " if args[6 if name == "convolution" else 7] else ""
    return f"{name} {kind}{'x'.join(map(str, weight.shape[2:]))}"


def time_ops(subject: Subject, mode: str, precision: str) -> list[dict]:
    """Return a row for each part, op and shapes: calls, milliseconds, FLOP and bytes of one step."""
    warnings.filterwarnings("ignore", "Full backward hook is firing")  # torch warns since images need no gradient
    step = subject.step(mode, precision, no_grad=torch.no_grad)  # inference_mode would not split composite ops
    with OpTimer(subject) as timer:
        for _ in range(PASSES):
            step()
    rows = []
    for (part, op, shapes), (seconds, flop, nbytes, calls) in timer.sums.items():
        row = dict(part=part, op=op, shapes=shapes, calls=calls // PASSES, ms=1000 * seconds / PASSES)
        rows.append(row | dict(flop=flop // PASSES, bytes=nbytes // PASSES))
    return rows


def against_roof(ops: list[dict], flops: float, bandwidth: float) -> list[dict]:
    """Sum rows of `time_ops` over their shapes and sort them by the time lost: milliseconds above their limit.

    `flops` and `bandwidth` are FLOP and bytes per second of the machine. Return a row for each part and op, in which
    `slowest` has the input shapes that lose the most time.
    """
    sums = defaultdict(lambda: dict(calls=0, ms=0, roof_ms=0, flop=0, bytes=0, most=0, slowest=""))
    for op in ops:
        roof = 1000 * max(op["flop"] / flops, op["bytes"] / bandwidth)
        total = sums[op["part"], op["op"]]
        for name in ("calls", "ms", "flop", "bytes"):
            total[name] += op[name]
        total["roof_ms"] += roof
        if op["ms"] - roof > total["most"]:
            total["most"], total["slowest"] = op["ms"] - roof, op["shapes"]
    spent = sum(total["ms"] for total in sums.values())
    rows = []
    for (part, op), total in sorted(sums.items(), key=lambda item: item[1]["roof_ms"] - item[1]["ms"]):
        ms, roof = total["ms"], total["roof_ms"]
        row = dict(part=part, op=op, calls=total["calls"], ms=round(ms, 3), share=round(ms / spent, 4))
        row |= dict(gflops=round(total["flop"] / ms / 1e6, 1), gbytes=round(total["bytes"] / ms / 1e6, 1))
        row |= dict(of_roof=round(roof / ms, 3), lost_ms=round(ms - roof, 3), slowest=total["slowest"])
        rows.append(row)
    return rows


def measure(name: str, mode: str, precision: str, options: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    model = reference_models.create(name, options.size, options.authors)
    subject = Subject(model, options.batch, options.size, "channels_last", options.device)
    roof = roofs(precision, options.device)
    steps = {"model": subject.step(mode, precision)} | {what: step for what, (step, _) in roof.items()}
    seconds = interleaved(steps, options.seconds)
    rates = {what: amount / seconds[what] for what, (_, amount) in roof.items()}
    convolution = max(rates["conv 1x1"], rates["conv 3x3"])
    macs = count_macs(subject.model, tuple(subject.images.shape[1:])) * options.batch
    flop = 2 * macs * {"infer": 1, "train": 3}[mode]
    ops = time_ops(subject, mode, precision)
    nbytes = sum(op["bytes"] for op in ops)
    spent = sum(op["ms"] for op in ops)
    parts = defaultdict(float)
    for op in ops:
        parts[op["part"]] += op["ms"] / spent
    flops, bandwidth = flop / seconds["model"], nbytes / seconds["model"]
    return dict(
        model=name,
        mode=mode,
        precision=precision,
        batch=options.batch,
        size=options.size,
        ms=round(1000 * seconds["model"], 2),
        gflops=round(flops / 1e9, 1),
        of_convolution=round(flops / convolution, 3),
        of_matrix_product=round(flops / rates["matrix product"], 3),
        gbytes=round(bandwidth / 1e9, 1),
        of_copy=round(bandwidth / rates["copy"], 3),
        roofs={what: round(rate / 1e9, 1) for what, rate in rates.items()},
        parts={part: round(share, 3) for part, share in sorted(parts.items(), key=lambda item: -item[1])},
        ops=against_roof(ops, convolution, rates["copy"]),
    )


def print_row(row: dict, ops: int) -> None:
    roofs = ", ".join(f"{what} {rate:.0f}" for what, rate in row["roofs"].items())
    parts = ", ".join(f"{part} {share:.0%}" for part, share in row["parts"].items())
    print(
        f"\n{row['model']}, {row['mode']}, {row['precision']}, {row['batch']} images of {row['size']} pixels: "
        f"{row['ms']:.1f} ms\n"
        f"{row['gflops']:.0f} GFLOP/s: {row['of_convolution']:.0%} of convolution, "
        f"{row['of_matrix_product']:.0%} of the matrix product; "
        f"{row['gbytes']:.0f} GB/s: {row['of_copy']:.0%} of the copy\n"
        f"limits, GFLOP/s and GB/s: {roofs}\n"
        f"time: {parts}\n"
    )
    columns = list(row["ops"][0])
    print(table(columns, [[op[column] for column in columns] for op in row["ops"][:ops]]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda s: s.split(","), default=list(MODELS), help="comma-separated names")
    add_cells(parser)
    parser.add_argument("--ops", type=int, default=6, help="ops to print for each row; the file has all")
    parser.add_argument("--output", type=Path, default=RESULTS / "roofline.json")
    parser.add_argument("--authors", type=Path, help="folder with clones of the authors' repositories")
    options = parser.parse_args()
    reference_models.check_names(options.models, options.authors)
    keep_freed_memory()
    for name, mode, precision in product(options.models, options.mode, options.precision):
        row = measure(name, mode, precision, options)
        print_row(row, options.ops)
        timing.save(options.output, timing.machine(options.device), [row], KEY)


if __name__ == "__main__":
    main()
