"""GPT-2 with N thinking rows next to its vocabulary, and a cache for sampling.

The thinking rows are a parameter of their own, `think`, and not a slice of a longer `wte`. So text
logits stay bit-equal when the model grows, and the rows can have their own learning rate. Drop
them, and GPT-2 is back.

    gpt = load("gpt2")                 # or pico, pico-teacher, a path, a folder of Hugging Face's
    h = gpt(ids)                       # [R, T] -> last hidden states [R, T, C]
    gpt.logits(h), gpt.text_logits(h)  # [R, T, V + N], [R, T, V]

Left out on purpose: dropout, since rollout and gradient pass must be the same function; weight
decay. Knows download.py, fast.py and weights.py.

Letters: R rows of a batch, T places, C width, H heads, D = C / H, V text rows, N thinking rows.
"""
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from download import download
from fast import Recorder, unembed
from weights import Found, check_tensor, of_state, read_gpt2, read_weights

ASSETS = Path(__file__).resolve().parent / "assets"
PICO = {"pico": ASSETS / "pico" / "student.pt", "pico-teacher": ASSETS / "pico" / "teacher.pt"}
SIZES = {  # layers, heads, width
    "gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}
WEIGHTS = "https://huggingface.co/openai-community/{}/resolve/main/pytorch_model.bin"
GPT2_SHA256 = "7c5d3f4b8b76583b422fcb9189ad6c89d5d97a094541ce8932dce3ecabde1421"


@dataclass(frozen=True)
class Config:
    n_layer: int = 12
    n_head: int = 12  # H
    n_embd: int = 768  # C
    n_ctx: int = 1024  # positions
    vocab_size: int = 50257  # V
    think_vocab: int = 0  # N

    def __post_init__(self):
        if self.n_head < 1 or self.n_embd % self.n_head:
            raise ValueError(f"a width of {self.n_embd} can't be shared by {self.n_head} heads")


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # q, k and v in one product
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor | None, cache: list[Tensor] | None,
                at: Tensor | None) -> Tensor:
        # [R, T, C], [R or 1, 1, T, keys], [k, v] of [R, H, T_max, D] each, [T] -> [R, T, C]
        R, T, C = x.shape
        qkv = self.c_attn(x).split(C, dim=2)  # 3 x [R, T, C]
        q, k, v = (y.view(R, T, self.n_head, -1).transpose(1, 2) for y in qkv)  # [R, H, T, D]
        if cache is not None and at is None:
            # a cache that grows: autograd can't follow writes in place (continuous thoughts)
            cache[:] = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            k, v = cache
        elif cache is not None:
            # `at` is a tensor, so one compiled graph serves every step of a rollout
            for all_places, new in zip(cache, (k, v)):
                all_places.index_copy_(2, at, new)
            k, v = cache  # all T_max keys: the shape never changes
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.c_proj(y.transpose(1, 2).reshape(R, T, C))


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:  # [R, T, C] -> [R, T, C]
        # GPT-2's GELU is the tanh form; the exact one is off by up to 5e-4
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache, at: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache, at)  # places exchange what they know
        return x + self.mlp(self.ln_2(x))  # each place works on its own


class GPT(nn.Module):
    """model(ids) -> last hidden states; model.logits(h) -> V + N logits. Parameter names are
    Hugging Face's. text_ids: the GPT-2 ids that a small language uses; None: all of them."""

    def __init__(self, config: Config, text_ids: list[int] | None = None):
        super().__init__()
        self.config, self.text_ids = config, text_ids
        self.recorder: Recorder | None = None  # of a sampler (fast.sampler_of)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # text rows, tied in and out
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)  # positions
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        # thinking rows, tied as well
        self.think = nn.Parameter(torch.zeros(config.think_vocab, config.n_embd))
        self.gate_bias = nn.Parameter(torch.zeros(()))  # how readily any thought comes
        self.apply(self._init)
        # with a larger spread each position has to learn the task for itself
        nn.init.normal_(self.wpe.weight, std=0.02)

    def _init(self, module: nn.Module) -> None:
        # GPT-2's 0.02 is 0.55 / sqrt(768); written this way it also suits a width of 64
        std = 0.55 / math.sqrt(self.config.n_embd)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)

    @torch.no_grad()
    def wave_positions(self, size: float = 0.1, longest: float = 100.0) -> None:
        """Sinusoidal positions ("Attention Is All You Need", section 3.5); they may still learn."""
        # a fixed distance is then the same linear map everywhere. Randomly drawn positions must
        # learn it place by place, and a small model with full attention does not
        n, C = self.wpe.weight.shape
        # wavelengths from 2 pi to 2 pi * longest tokens
        angle = torch.arange(n).unsqueeze(1) * longest ** (-torch.arange(C // 2) / (C // 2))
        self.wpe.weight.copy_(size * torch.cat([angle.sin(), angle.cos()], 1))

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    def embed(self, ids: Tensor, positions: Tensor, fed: Tensor | None = None) -> Tensor:
        # [R, T], [T] or [R, T], None or [R, T, C] -> [R, T, C]
        V = self.config.vocab_size
        x = F.embedding(ids.clamp(max=V - 1), self.wte.weight)  # thoughts get some text row first
        if len(self.think):
            # two gathers and a choice; cat(wte, think) would copy 150 MB at GPT-2's size
            thoughts = F.embedding((ids - V).clamp(min=0), self.think) if fed is None else fed
            x = torch.where((ids >= V).unsqueeze(-1), thoughts, x)
        return x + self.wpe(positions)

    def forward(self, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None,
                cache: list | None = None, at: Tensor | None = None,
                fed: Tensor | None = None) -> Tensor:
        """ids [R, T] -> hidden states after ln_f [R, T, C].

        positions [T] or [R, T]: default 0..T-1. mask: True where a query may look; None: causal.
        cache, from `new_cache`, with at [T]: these ids stand at those places of it, and mask is
        [R, 1, T, T_max]. Without `at` the cache grows by them, and passes gradients on.
        fed [R, T, C]: what comes in where ids are thinking ids, instead of thinking rows. These
        are hidden states of earlier places: continuous thoughts (Coconut, arXiv 2412.06769).
        Raises ValueError for more ids than the context holds.
        """
        if positions is None:
            if ids.shape[1] > self.config.n_ctx:
                raise ValueError(f"{ids.shape[1]} tokens do not fit this model's context "
                                 f"of {self.config.n_ctx}")
            positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embed(ids, positions, fed)
        for i, block in enumerate(self.h):
            x = block(x, mask, cache[i] if cache is not None else None, at)
        return self.ln_f(x)

    def text_logits(self, h: Tensor) -> Tensor:  # [..., C] -> [..., V]
        return unembed(h, self.wte.weight)

    def think_logits(self, h: Tensor) -> Tensor:  # [..., C] -> [..., N]
        return unembed(h, self.think) + self.gate_bias

    def logits(self, h: Tensor) -> Tensor:  # [..., C] -> [..., V + N]
        if not len(self.think):
            return self.text_logits(h)
        # two products: text logits are computed exactly as before the model grew
        return torch.cat([self.text_logits(h), self.think_logits(h)], -1)

    def new_cache(self, R: int, T_max: int) -> list[list[Tensor]]:
        # -> [k, v] per layer, [R, H, T_max, D] each
        """Room for keys and values."""
        # each a tensor of its own: once compiled, a write into a part of a larger one becomes a
        # copy of the whole
        c, kind = self.config, self.device.type
        # under autocast keys and values come in its dtype
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.wte.weight.dtype
        shape = R, c.n_head, T_max, c.n_embd // c.n_head
        # zeros, not empty: masked places are multiplied by 0, and 0 * NaN is NaN
        return [[torch.zeros(shape, device=self.device, dtype=dtype) for _ in "kv"]
                for _ in range(c.n_layer)]

    @torch.no_grad()
    def grow(self, N: int, ids: Tensor, prior: float, generator: torch.Generator,
             mask: Tensor | None = None, spread: float = 2.4) -> dict[str, float]:
        """Add N thinking rows so that the mean p_think over the text ids [R, T] is `prior`.

        A row is mean(wte) + noise. All text logits rise and fall together along that mean, so
        thinking rows contain it: else the gate would swing with the context. The noise spreads
        the thinking logits by `spread`, a standard deviation: rows that look alike never come to
        mean different things. A wider one makes p_think vary more.

        The noise is a random mixture of the states of `ids`, less their mean. So rows differ where
        contexts do, in the few directions that states have. Thoughts that are near each other
        there are read alike, and many of them come to share a meaning.
        Returns what `fit_gate` returns. Raises ValueError for N < 1 or a prior outside (0, 1).
        """
        if N < 1 or not 0 < prior < 1:
            raise ValueError("thinking rows must be at least 1 and their prior between 0 and 1, "
                             f"not {N} and {prior}")
        w = self.wte.weight
        h = self(ids, None, mask).flatten(0, 1).float()  # [R * T, C]
        mixture = torch.randn(N, len(h), generator=generator).to(h.device)
        noise = mixture @ (h - h.mean(0))
        # all contexts share the mean state: what a row says along it would make the same row
        # likely everywhere. A code of one thought has to be unlearned first
        common = F.normalize(h.mean(0), dim=0)
        noise -= torch.outer(noise @ common, common)
        size = spread / (h @ noise.T).std(1).mean() if N > 1 else 0.02 / noise.std()
        noise *= size
        self.set_rows((w.float().mean(0) + noise).to(w.dtype))
        return self.fit_gate(ids, prior, mask)

    def set_rows(self, rows: Tensor) -> None:  # [N, C]
        """These thinking rows from now on."""
        self.think = nn.Parameter(rows)
        self.config = replace(self.config, think_vocab=len(rows))

    @torch.no_grad()
    def fit_gate(self, ids: Tensor, prior: float, mask: Tensor | None = None,
                 where: Tensor | None = None) -> dict[str, float]:
        """Set gate_bias so that the mean p_think over the ids [R, T] is `prior`.

        where [R, T]: over these places alone. Returns {"p05", "mean", "p95"} of p_think. Raises
        ValueError for a prior outside (0, 1).
        """
        if not 0 < prior < 1:
            raise ValueError(f"the prior of thinking rows lies between 0 and 1, not at {prior}")
        h, V = self(ids, None, mask), self.config.vocab_size
        h = h.flatten(0, 1) if where is None else h[where]
        self.gate_bias.zero_()  # so that gap is what the bias is added to
        gap = torch.cat([gate_logit(self.logits(x), V) for x in h.split(1024)]).cpu().double()
        low, high = -1e4, 1e4
        for _ in range(100):  # bisection: mean p_think rises with the bias
            middle = (low + high) / 2
            too_low = torch.sigmoid(gap + middle).mean() < prior
            low, high = (middle, high) if too_low else (low, middle)
        self.gate_bias.fill_(low)
        p = torch.sigmoid(gap + low)
        p05, p95 = p.quantile(0.05).item(), p.quantile(0.95).item()
        return {"p05": p05, "mean": p.mean().item(), "p95": p95}


def gate_logit(logits: Tensor, V: int) -> Tensor:  # [..., V + N] -> [...]
    """log(p_think / p_speak): the one number that decides between thinking and speaking."""
    return logits[..., V:].logsumexp(-1) - logits[..., :V].logsumexp(-1)


# Weights: from OpenAI, from Hugging Face's files, from our own checkpoints

def load(name: str | Path) -> GPT:
    """A model by name (pico, pico-teacher, gpt2, ...) or by path: a checkpoint of ours, the folder
    of a run, a .bin or .safetensors file of Hugging Face's, or a folder with one.

    A run's model makes sense only under its rules, a window or forced thoughts: `sample.load_run`
    reads both.
    Raises ValueError, one line.
    """
    path = PICO.get(str(name), Path(name))
    # (a folder of that name is meant, as in transformers)
    if str(name) in SIZES and not (path / "config.json").exists():
        cached = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}-pytorch_model.bin"
        sha256 = GPT2_SHA256 if name == "gpt2" else None
        path = download(WEIGHTS.format(name), cached, sha256)  # once, then the cached file
        return from_openai(of_state(read_weights(path), path, n_head=SIZES[name][1]))
    if not path.exists():
        raise ValueError(f"there is no model {str(name)!r}: neither a file or folder nor one of "
                         f"{', '.join([*PICO, *SIZES])}")
    if (path / "ckpt.pt").exists():
        if (path / "config.json").exists():
            raise ValueError(f"{path} holds the checkpoint of a run and a model of Hugging Face's: "
                             "name the file, not the folder")
        path = path / "ckpt.pt"  # the folder of a run
    state = None if path.is_dir() or path.suffix == ".json" else read_weights(path)
    if state and {"config", "text_ids"} <= state.keys():  # a checkpoint of ours
        return from_checkpoint(state, path)
    return from_openai(read_gpt2(path, state))


def from_openai(found: Found) -> GPT:
    """A GPT-2 of any size, without thinking rows. Raises ValueError."""
    c = Config(found.n_layer, found.n_head, found.n_embd, found.n_ctx, found.vocab_size)
    model = GPT(c, found.text_ids)
    own = {"think": model.think.data, "gate_bias": model.gate_bias.data}
    return fill(model, {**found.weights, **own})


def from_checkpoint(saved: dict, path: Path) -> GPT:
    """What `as_checkpoint` made. Raises ValueError."""
    try:
        weights = dict(saved["model"])
        if "think_offset" in weights:  # its name up to format 2
            weights["gate_bias"] = weights.pop("think_offset")
        for name, v in weights.items():
            check_tensor(name, v, path)
        return fill(GPT(Config(**saved["config"]), saved["text_ids"]), weights)
    except (KeyError, TypeError) as e:
        raise ValueError(f"{path} has a config, but is no checkpoint of ours ({e})") from e


def fill(model: GPT, state: dict[str, Tensor]) -> GPT:
    try:
        model.load_state_dict(state)
    except RuntimeError as e:  # torch lists every key: the first is enough to see what is wrong
        reason = str(e).splitlines()[1].strip().partition('", "')[0].replace('"', "")
        raise ValueError(f"the weights do not fit the model that they describe: {reason}") from e
    return model


def as_checkpoint(model: GPT) -> dict:
    """What `load` reads back. A run adds its own keys to these."""
    return {"config": asdict(model.config), "text_ids": model.text_ids,
            "model": {k: v.detach().cpu() for k, v in model.state_dict().items()}}
