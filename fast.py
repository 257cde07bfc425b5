"""What is here for speed alone. Each trick has a plain twin, and everything runs without it.

    inverse_cdf  a draw per row from many weights           twin: one cumulative sum
    unembed      h @ rows.T over GPT-2's 50,257 rows        twin: its last line
    packed       Linear layers in oneDNN's own layout       twin: the layers as they are
    Recorder     a place of a rollout as one CUDA graph     twin: the place as it is
    in_pieces    a loss over logits that never all exist    twin: `in_one`
    in_groups    only the logits that a place needs         twin: `in_one`, over all places

The operators of oneDNN are private to torch. Where one is missing or fails, the plain way is taken.

Left out on purpose: anything that changes a result by more than rounding. Knows no other file.

Letters: R rows, C width, V text rows, N thinking rows, n states.
"""
import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import fields

import torch
import torch.nn as nn
from torch import Tensor

ROWS = 512  # rows of logits that exist at once, at most,
FLOATS = 11 * 2 ** 20  # and on a CPU 44 MiB of them: 220 rows of GPT-2's 50,257 + 2,048
BLOCK = 5 * 2 ** 18  # on a CPU their gradient is formed in blocks of 5 MiB, which its caches hold


def plain_cpu(w: Tensor) -> bool:
    """Can oneDNN's operators replace torch's products for this weight?"""
    return (w.device.type == "cpu" and w.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling())


@functools.cache
def is_intel() -> bool:
    """torch's own product is MKL's, which is fastest on the CPUs of its maker."""
    return "Intel" in getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")


def unembed(h: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
    # [..., C], [V, C], None or [..., V] -> [..., V]
    """h @ rows.T, written into `out` where that is given.

    170 states over 50,257 rows on one thread of a Zen 4: 311 ms by torch's product, 178 by
    oneDNN's. On a Xeon both take the same time, and torch's can write into `out` directly.
    """
    if torch.is_autocast_enabled(h.device.type):
        # GPT-2's logits lie between -35 and -110. There neighbours in bfloat16 are up to half a nat
        # apart, and siblings differ by hundredths
        with torch.autocast(h.device.type, enabled=False):
            return unembed(h.to(rows.dtype), rows, out)
    # oneDNN's operator has no gradient, and a small vocabulary gains nothing
    learning = torch.is_grad_enabled() and (h.requires_grad or rows.requires_grad)
    if len(rows) > 2 ** 14 and plain_cpu(rows) and h.dtype == rows.dtype and not learning:
        if out is not None and is_intel():
            return torch.matmul(h, rows.T, out=out)
        into = h.new_empty(*h.shape[:-1], len(rows)) if out is None else out
        with contextlib.suppress(AttributeError, RuntimeError):
            # oneDNN copies its weight: parts of 2^13 rows keep that copy at 24 MiB
            for part, columns in zip(rows.detach().split(2 ** 13), into.split(2 ** 13, -1)):
                linear = torch.ops.mkldnn._linear_pointwise
                columns.copy_(linear(h, part, None, "none", [], ""))
            return into
    return h @ rows.T if out is None else out.copy_(h @ rows.T)


@contextlib.contextmanager
def packed(model: nn.Module, R: int, S: int):
    """While it lasts, the model's products use weights in oneDNN's own layout.

    At GPT-2's size a decode step of 4 rows takes 104 ms plain and 58 packed, of 64 rows 399
    and 281. Packing takes 280 ms, so it waits for a rollout of 64 tokens. Sums differ in their
    order alone. Narrow models gain nothing. A sampler with a `Recorder` gets fresh copies instead.
    """
    layers, ops = [m for m in model.modules() if isinstance(m, nn.Linear)], torch.ops.mkldnn
    weights: list[Tensor] = []
    if model.recorder is not None:
        model.recorder.refresh()
    wide = model.recorder is None and model.config.n_embd >= 512
    if wide and plain_cpu(model.wte.weight) and R > 1 and R * S >= 64:
        with contextlib.suppress(AttributeError, RuntimeError):
            weights = [ops._reorder_linear_weight(w.detach(), R)
                       for w in [*(m.weight for m in layers), model.wte.weight]]
    # an attribute of the instance hides the class's method until it is deleted again
    for m, w in zip(layers, weights):
        m.forward = lambda x, w=w, b=m.bias: ops._linear_pointwise(x, w, b, "none", [], "")
    if weights:
        last = weights[-1]
        model.text_logits = lambda h: ops._linear_pointwise(h, last, None, "none", [], "")
    try:
        yield
    finally:
        if weights:
            del model.text_logits
            for m in layers:
                del m.forward


class Recorder:
    """What the sampler of a run keeps from rollout to rollout: steps that are compiled and
    recorded, with their tensors, and copies of weights in the dtype of products.

    A place of 32 rows of GPT-2 takes an H200 6 to 13 ms where each of some 350 kernels is launched,
    1.3 ms as a CUDA graph, and 0.8 ms compiled as well, in 175 kernels (docs/GPU.md).
    """
    KEPT = 8  # kinds of rollouts: as many as torch compiles of one function

    def __init__(self, compiled: bool, copies: list[tuple[Tensor, Tensor]]):
        self.compiled, self.copies, self.kept = compiled, copies, {}

    def refresh(self) -> None:
        """The copies of weights, once a rollout."""
        if self.copies:
            to, of = zip(*self.copies)
            torch._foreach_copy_(to, of)

    def __call__(self, key: str, fresh, step: Callable) -> tuple:
        """fresh: a rollout's tensors at its start. step(fresh) advances them by one place.
        -> Tensors that stay from one rollout to the next, with fresh's values, and a fast step. A
        graph works on the tensors that it was recorded with, whatever it is given. key: all else
        that the step depends on."""
        if key not in self.kept:
            if len(self.kept) == self.KEPT:  # (a GPU's memory holds what each of them works in)
                self.kept.clear()
                torch.compiler.reset()  # torch itself compiles one function eight times at most
            own = copy.deepcopy(fresh)
            self.kept[key] = own, self.record(own, fresh, step)
        own, replay = self.kept[key]
        write_over(own, fresh)
        return own, replay

    def record(self, own, fresh, step: Callable) -> Callable:
        step = torch.compile(step, dynamic=False) if self.compiled else step
        if own.at.device.type != "cuda":
            return lambda own, t: step(own)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are chosen, and compiled, before they are recorded
            for _ in range(3):
                write_over(own, fresh)
                step(own)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # autocast casts no weight in here, as a sampler's are copies: it would keep the cast, in
        # the graph's memory. (Threads of others, as NCCL's, may go on meanwhile)
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step(own)
        return lambda own, t: graph.replay()


def write_over(own, fresh) -> None:
    """Every tensor of `own` by that of `fresh`, an object of the same kind."""
    for a, b in ((getattr(x, f.name) for x in (own, fresh)) for f in fields(own)):
        if isinstance(a, Tensor):
            a.copy_(b)
        elif isinstance(a, list):
            torch._foreach_copy_(sum(a, []), sum(b, []))


@torch.no_grad()
def sampler_of(model: nn.Module, dtype: torch.dtype, compiled: bool) -> nn.Module:
    """The model for rollouts. On a GPU, or compiled, a twin that shares its parameters and has a
    `Recorder`. Its blocks' products have copies of the weights in dtype.

    Autocast would round the same weights in the same way. But eagerly it does so in each rollout,
    and compiled in each place.
    """
    if model.device.type != "cuda" and not compiled:
        return model
    twin, copies = copy.copy(model), []
    twin._modules = dict(model._modules)  # (a plain copy would share this dict)
    if dtype != model.wte.weight.dtype:
        twin.h = copy.deepcopy(model.h).requires_grad_(False)
        for own, its in zip(twin.h.modules(), model.h.modules()):
            if isinstance(own, nn.Linear):
                own.to(dtype)
                copies += [(own.weight, its.weight), (own.bias, its.bias)]
            elif isinstance(own, nn.LayerNorm):
                own.weight, own.bias = its.weight, its.bias
    twin.recorder = Recorder(compiled, copies)
    return twin


def inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:  # [R, n] >= 0, [R] in [0, 1) -> [R]
    """One exact draw per row from unnormalised weights, with one uniform per row.

    Plainly: (weights.cumsum(-1) <= u[:, None] * weights.sum(-1, keepdim=True)).sum(-1). On a CPU
    torch.multinomial takes 28 ms for [16, 52305], and this less than 3.
    """
    # two levels: first a block of 256, then a place in it, so the second cumulative sum runs over
    # one block alone
    R, n = weights.shape
    blocks = nn.functional.pad(weights, (0, -n % 256)).view(R, (n + 255) // 256, 256)
    sums = blocks.sum(-1)  # [R, blocks]
    ends = sums.cumsum(-1)  # where each block ends on the line of all weights
    target = u.unsqueeze(-1) * ends[:, -1:]  # [R, 1]
    # argmax of a cumulative sum is the first place that reaches its end: rounding past that end
    # never lands on a weight of 0
    b = torch.minimum((ends <= target).sum(-1), ends.argmax(-1)).unsqueeze(-1)  # [R, 1]
    inner = blocks.gather(1, b.unsqueeze(-1).expand(-1, 1, 256)).squeeze(1).cumsum(-1)  # [R, 256]
    # rounding can put the rest a hair below 0, which would take row 0 even at a weight of 0
    rest = (target - (ends.gather(1, b) - sums.gather(1, b))).clamp(min=0)
    j = torch.minimum((inner <= rest).sum(-1), inner.argmax(-1))
    return b.squeeze(-1) * 256 + j


def rows_at_once(columns: int, device: torch.device) -> int:
    """How many rows of logits with that many columns exist at once."""
    # a piece is some sixty launches, whatever its size: on a GPU fewer pieces are faster. A
    # gradient pass of `stream` at GPT-2's size has 830 launches less than with 220 rows
    few = FLOATS // max(columns, 1) if device.type == "cpu" else ROWS
    return max(1, min(ROWS, few))


def in_one(loss: Callable, h: Tensor, wte: Tensor, think: Tensor, bias: Tensor,
           columns: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The plain twin of `in_pieces`: all logits at once."""
    logits = torch.cat([(h @ wte.T).float(), (h @ think.T).float() + bias], -1)
    return loss(logits, len(wte), *columns)


def in_groups(loss: Callable, model: nn.Module, h: Tensor, columns: list[Tensor],
              kinds: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`in_pieces` with, at each place, only the logits that play a part in it.

    V at text, N at thoughts that were forced, both where a gate was open. On cups two of three
    places go without the N. kinds: is_think, is_text, gated. The first column is ids.
    """
    is_think, is_text, gated = kinds
    V, text, think = model.config.vocab_size, model.wte.weight, model.think
    # (detached: an empty slice of `text` with a gradient would cost 154 MB of zeros)
    groups = ((is_think & ~gated, text[:0].detach(), think), (gated, text, think),
              (is_text & ~gated, text, think[:0]))
    total, numbers = h.new_zeros(()), h.new_zeros(())
    for where, wte, rows in groups:
        at = where.flatten().nonzero().squeeze(1)  # the one wait for a GPU
        if len(at):
            ids, *others = (c.flatten(0, 1)[at] for c in columns)
            ids = ids - (V - len(wte))  # counted from this group's first row of logits
            value, number = in_pieces(loss, h.flatten(0, 1)[at], wte, rows, model.gate_bias,
                                      [ids, *others])
            total, numbers = total + value, numbers + number
    return total, numbers


def in_pieces(loss: Callable, h: Tensor, wte: Tensor, think: Tensor, bias: Tensor,
              columns: list[Tensor]) -> tuple[Tensor, Tensor]:
    # callable, [n, C], [V, C], [N, C], [], tensors [n, ...] -> [], []
    """loss(logits [n, V + N], V, *columns) -> (sum, number), without ever holding all logits.

    The sum has a gradient, the number has none. At [1024, 52305] on one thread of a Xeon:
    1.71 s and 261 MiB above the inputs. The twin with F.cross_entropy: 1.74 s and 637 MiB.
    """
    with torch.autocast(h.device.type, enabled=False):  # as in `unembed`
        return _Pieces.apply(h.to(wte.dtype), wte, think, bias, loss, columns)


class _Pieces(torch.autograd.Function):
    """Gradients are formed in the forward: checkpointing would do the unembedding twice.

    Each piece's logits are written into one buffer, and their gradient over them. Matrix
    products in place take it on to h and to the two weights.
    """

    @staticmethod
    def forward(ctx, h, wte, think, bias, loss, columns):
        V, total, numbers = wte.shape[0], 0.0, 0.0
        ctx.gradients = [torch.zeros_like(x) for x in (h, wte, think, bias)]
        g_h, g_wte, g_think, g_bias = ctx.gradients
        size = min(rows_at_once(V + len(think), h.device), len(h))
        # a GPU would wait for many small launches: there a block is a whole piece
        block = max(1, BLOCK // (V + len(think))) if h.device.type == "cpu" else size
        dtype = torch.promote_types(h.dtype, torch.float32)
        buffer = h.new_empty(size, V + len(think), dtype=dtype)
        for i in range(0, len(h), size):
            x = h[i:i + size]
            rows = buffer[:len(x)]  # logits first; then, block by block, their gradient
            unembed(x, wte, rows[:, :V])
            unembed(x, think, rows[:, V:]).add_(bias)
            for j in range(0, len(x), block):
                logits = rows[j:j + block].detach().requires_grad_()
                with torch.enable_grad():
                    own = (c[i + j:i + j + len(logits)] for c in columns)
                    value, number = loss(logits, V, *own)
                rows[j:j + block] = torch.autograd.grad(value, logits)[0]
                total, numbers = total + value.detach(), numbers + number
            g = rows.to(h.dtype)
            g_h[i:i + size] = g[:, :V] @ wte + g[:, V:] @ think
            g_wte.addmm_(g[:, :V].T, x)
            g_think.addmm_(g[:, V:].T, x)
            g_bias += g[:, V:].sum()
        return total, numbers

    @staticmethod
    def backward(ctx, g, _):
        # scaled in place and handed over: a copy of g_wte would be 154 MB at GPT-2's size
        gradients, ctx.gradients = ctx.gradients, None
        return *(x.mul_(g) for x in gradients), None, None
