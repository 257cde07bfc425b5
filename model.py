"""GPT-2, exactly, with N thinking rows beside its vocabulary and a cache for sampling.

The thinking rows are a parameter of their own (`think`), not a slice of a longer `wte`: text logits stay
bit-equal when the model grows, the rows get their own learning rate, and dropping them gives GPT-2 back.

Left out on purpose: dropout (the rollout and the gradient pass must be the same function), weight decay,
anything that is not GPT-2. Knows nothing of the other files but download.py.

Letters: R rows of a batch, T positions, C width, H heads, D = C / H, L layers, V text rows, N thinking rows.
"""
import contextlib
import functools
import hashlib
import json
import math
import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from download import download

ASSETS = Path(__file__).resolve().parent / "assets"
PICO = {"pico": ASSETS / "pico" / "student.pt", "pico-teacher": ASSETS / "pico" / "teacher.pt"}
SIZES = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}
WEIGHTS = "https://huggingface.co/openai-community/{}/resolve/main/pytorch_model.bin"
GPT2_SHA256 = "7c5d3f4b8b76583b422fcb9189ad6c89d5d97a094541ce8932dce3ecabde1421"
FORMAT = 2  # of checkpoints; 1 had no seal
SEAL = b"\nsha256:"  # with the digest of all bytes before it, a checkpoint's last 72 bytes: torch.load reads past them
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@dataclass(frozen=True)
class Config:
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_ctx: int = 1024
    vocab_size: int = 50257  # V
    think_vocab: int = 0  # N

    def __post_init__(self):
        if self.n_head < 1 or self.n_embd % self.n_head:
            raise ValueError(f"a width of {self.n_embd} can't be shared by {self.n_head} heads")


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Tensor | list[Tensor] | None, at: Tensor | None) -> Tensor:
        # [R, T, C], None or [R or 1, 1, T, keys], None or [2, R, H, T_max, D] or [k, v], None or [T] -> [R, T, C]
        R, T, C = x.shape
        q, k, v = (y.view(R, T, self.n_head, -1).transpose(1, 2) for y in self.c_attn(x).split(C, dim=2))
        if isinstance(cache, list):  # grows, since autograd can't follow writes in place: continuous thoughts learn this way
            cache[:] = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            k, v = cache
        elif cache is not None:
            # `at` is a device tensor, so that one compiled graph serves every step of a rollout
            cache[0].index_copy_(2, at, k)
            cache[1].index_copy_(2, at, v)
            k, v = cache[0], cache[1]  # all T_max keys, the unwritten ones masked: the shape never changes
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.c_proj(y.transpose(1, 2).reshape(R, T, C))


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:  # [R, T, C] -> [R, T, C]
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # GPT-2's GELU is the tanh form


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Tensor | None, at: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache, at)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """model(ids) -> last hidden states; model.logits(h) -> V + N logits. Parameter names are Hugging Face's."""

    def __init__(self, config: Config, text_ids: list[int] | None = None):
        super().__init__()
        self.config, self.text_ids = config, text_ids
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.think = nn.Parameter(torch.zeros(config.think_vocab, config.n_embd))  # tied in and out, as wte is
        self.think_offset = nn.Parameter(torch.zeros(()))  # one learnt scalar: how readily any thought comes
        self.apply(self._init)
        # positions start small: with a larger spread each position has to learn the task anew
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
        """Positions as sines and cosines of waves of 1 to `longest` tokens / 2 pi ("Attention Is All You Need", section 3.5).
        How far back a key lies is then one product for all places; rows that are drawn have to learn that place by place, and
        a small model from scratch that sees its whole text does not find its last thought with them (RESULTS.md, 5)."""
        n, C = self.wpe.weight.shape
        angle = torch.arange(n).unsqueeze(1) * longest ** (-torch.arange(C // 2) / (C // 2))  # [n, C / 2]
        self.wpe.weight.copy_(size * torch.cat([angle.sin(), angle.cos()], 1))

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    def embed(self, ids: Tensor, positions: Tensor, fed: Tensor | None = None) -> Tensor:
        # [R, T], [T] or [R, T], None or [R, T, C] -> [R, T, C]
        V = self.config.vocab_size
        x = F.embedding(ids.clamp(max=V - 1), self.wte.weight)
        if len(self.think):
            # two gathers and a choice; cat(wte, think) would copy 150 MB a step at GPT-2's size
            thoughts = F.embedding((ids - V).clamp(min=0), self.think) if fed is None else fed
            x = torch.where((ids >= V).unsqueeze(-1), thoughts, x)
        return x + self.wpe(positions)

    def forward(self, ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None,
                cache: list | None = None, at: Tensor | None = None, fed: Tensor | None = None) -> Tensor:
        """ids [R, T] -> hidden states after ln_f [R, T, C].

        positions [T] or [R, T]: default 0..T-1. mask: True where a query may look; None is plain causal.
        cache (from `new_cache`) with at [T]: these ids stand at those places of it, and mask is [R, 1, T, T_max]. Where a
        gradient must pass through it: lists [k, v], one a layer, which grow.
        fed [R, T, C]: continuous thoughts (Coconut, arXiv 2412.06769): where ids are thinking ids, hidden states of
        earlier places come in, instead of embedding rows.
        Raises ValueError for more ids than the context holds (given no positions).
        """
        if positions is None:
            if ids.shape[1] > self.config.n_ctx:
                raise ValueError(f"{ids.shape[1]} tokens do not fit this model's context of {self.config.n_ctx}")
            positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embed(ids, positions, fed)
        for i, block in enumerate(self.h):
            x = block(x, mask, cache[i] if cache is not None else None, at)
        return self.ln_f(x)

    def text_logits(self, h: Tensor) -> Tensor:  # [..., C] -> [..., V]
        return unembed(h, self.wte.weight).float()  # under autocast: sums over 50,257 rows in bfloat16 are off by percents

    def think_logits(self, h: Tensor) -> Tensor:  # [..., C] -> [..., N]
        return (h @ self.think.T).float() + self.think_offset

    def logits(self, h: Tensor) -> Tensor:  # [..., C] -> [..., V + N]
        # two products side by side: the text logits are computed exactly as they were before the model grew
        return torch.cat([self.text_logits(h), self.think_logits(h)], -1) if len(self.think) else self.text_logits(h)

    def new_cache(self, R: int, T_max: int) -> list[Tensor]:
        """One [2, R, H, T_max, D] tensor of keys and values a layer. (All layers in one tensor would be 12 times
        slower once compiled: an in-place write into a view of a graph's input becomes a copy of the whole.)"""
        c = self.config
        # zeros, not empty: masked places are multiplied by 0, and 0 * NaN is NaN
        kind = self.device.type  # under autocast the keys come in its dtype
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.wte.weight.dtype
        return [torch.zeros(2, R, c.n_head, T_max, c.n_embd // c.n_head, device=self.device, dtype=dtype)
                for _ in range(c.n_layer)]

    @torch.no_grad()
    def grow(self, N: int, ids: Tensor, prior: float, generator: torch.Generator, positions: Tensor | None = None,
             mask: Tensor | None = None, spread: float = 2.4, alphabet: str = "new") -> dict[str, float]:
        """Add N thinking rows such that the mean p_think over the text ids [R, T] is `prior`.

        A row is mean(wte) + noise. The mean matters: GPT-2's logits share a large part that depends on the
        context and lies along it, and rows without it would have p_think near 0 here and near 1 there.
        The noise has wte's own shape and a size that spreads the thinking logits by `spread` (a standard deviation):
        rows that look alike never come to mean different things, but with more of it p_think varies more between contexts.
        alphabet "text": row i is word i, read and predicted as that word is. "redrawn": a normal of the text rows' mean and
        covariance and no more care than that (https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
        Returns what `fit_offset` returns. Raises ValueError for N < 1, a prior outside (0, 1), or "text" with N other than V.
        """
        w = self.wte.weight
        V, C = w.shape
        if N < 1 or not 0 < prior < 1:
            raise ValueError(f"thinking rows must be at least 1 and their prior between 0 and 1, not {N} and {prior}")
        if alphabet == "text" and N != V:
            raise ValueError(f"there are {V} words for thinking rows to be copies of, not {N}")
        h = self(ids, positions, mask).flatten(0, 1)  # [R * T, C]
        mean = w.float().mean(0)
        noise = torch.randn(N, C, generator=generator).to(w.device)
        # the noise points where this vocabulary's words point: a thought looks like a mixture of words, so what the
        # model has learnt to do with words reaches it from the start
        values, vectors = torch.linalg.eigh(torch.cov(w.float().T))
        noise = noise @ (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        # ... and it says nothing along the mean state: what all contexts share would make the same row likely everywhere,
        # and a code in which all contexts have the same thought has to be unlearnt first
        common = F.normalize(h.float().mean(0), dim=0)
        if alphabet == "new":
            noise -= torch.outer(noise @ common, common)
            noise *= spread / (h.float() @ noise.T).std(1).mean() if N > 1 else 0.1 / noise.std()
        self.think = nn.Parameter((mean + noise).to(w.dtype) if alphabet != "text" else w.clone())
        self.config = Config(**{**asdict(self.config), "think_vocab": N})
        return self.fit_offset(ids, prior, positions, mask)

    @torch.no_grad()
    def fit_offset(self, ids: Tensor, prior: float, positions: Tensor | None = None, mask: Tensor | None = None,
                   where: Tensor | None = None) -> dict[str, float]:
        """Move the thinking rows' common offset so that the mean p_think over the ids [R, T] (over those of them that
        `where`, bool, says) is `prior`. Returns {"p05", "mean", "p95"} of p_think. Raises ValueError for a prior outside
        (0, 1)."""
        if not 0 < prior < 1:
            raise ValueError(f"the prior of thinking rows must lie between 0 and 1, not {prior}")
        h, V = self(ids, positions, mask), self.config.vocab_size
        h = h.flatten(0, 1) if where is None else h[where]
        self.think_offset.zero_()
        gap = torch.cat([gate_logit(self.logits(piece), V) for piece in h.split(1024)]).cpu().double()
        low, high = -1e4, 1e4
        for _ in range(100):  # bisection: mean p_think rises with the offset
            middle = (low + high) / 2
            low, high = (middle, high) if torch.sigmoid(gap + middle).mean() < prior else (low, middle)
        self.think_offset.fill_(low)
        p = torch.sigmoid(gap + self.think_offset)
        return {"p05": p.quantile(0.05).item(), "mean": p.mean().item(), "p95": p.quantile(0.95).item()}


def plain_cpu(w: Tensor) -> bool:
    """May oneDNN's own operators stand in for torch's products? (They are private to torch: each use has a way without.)"""
    return w.device.type == "cpu" and w.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


@functools.cache
def is_intel() -> bool:
    """torch's own product on a CPU is MKL's, which is at its best on the CPUs of its maker."""
    return "Intel" in getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")


def unembed(h: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:  # [..., C], [V, C], None or [..., V] -> [..., V]
    """h @ rows.T, into `out` where that is given. Over 50,257 rows, one thread of a Zen 4: 170 states take 311 ms by torch's
    product and 178 by oneDNN's, 512 states 890 and 518. On a Xeon the two are equally fast (180 states: 114 and 107), and
    torch's can write into `out` itself. oneDNN's has no gradient. A small vocabulary is left alone to the bit."""
    learning = torch.is_grad_enabled() and (h.requires_grad or rows.requires_grad)
    if len(rows) > 2 ** 14 and plain_cpu(rows) and h.dtype == rows.dtype and not learning:
        if out is not None and is_intel():
            return torch.matmul(h, rows.T, out=out)
        into = h.new_empty(*h.shape[:-1], len(rows)) if out is None else out
        with contextlib.suppress(AttributeError, RuntimeError):
            for part, columns in zip(rows.detach().split(2 ** 13), into.split(2 ** 13, -1)):  # oneDNN copies each part (24 MiB)
                columns.copy_(torch.ops.mkldnn._linear_pointwise(h, part, None, "none", [], ""))
            return into
    return h @ rows.T if out is None else out.copy_(h @ rows.T)


@contextlib.contextmanager
def packed(model: GPT, R: int, S: int):
    """While it lasts, products are oneDNN's, with copies of the weights that it has laid out for itself.

    At GPT-2's size, same machine, a decode step of 4 rows takes 104 ms plain and 58 packed, of 16 rows 175 and 121, of 64 rows
    399 and 281. Packing takes 280 ms, so there must be rows enough; one row alone gains nothing. The sums are the same
    but for their order; narrow models, where nothing would be gained, are left alone to the bit.
    """
    layers, ops, weights = [m for m in model.modules() if isinstance(m, nn.Linear)], torch.ops.mkldnn, []
    if isinstance(model, GPT) and plain_cpu(model.wte.weight) and model.config.n_embd >= 512 and R > 1 and R * S >= 64:
        with contextlib.suppress(AttributeError, RuntimeError):
            weights = [ops._reorder_linear_weight(w.detach(), R) for w in [*(m.weight for m in layers), model.wte.weight]]
    for m, w in zip(layers, weights):
        m.forward = lambda x, w=w, b=m.bias: ops._linear_pointwise(x, w, b, "none", [], "")
    if weights:
        model.text_logits = lambda h: ops._linear_pointwise(h, weights[-1], None, "none", [], "")
    try:
        yield
    finally:
        if weights:
            del model.text_logits
            for m in layers:
                del m.forward


def gate_logit(logits: Tensor, V: int) -> Tensor:  # [..., V + N] -> [...]
    """log(p_think / p_speak): the one number that decides between thinking and speaking."""
    return logits[..., V:].logsumexp(-1) - logits[..., :V].logsumexp(-1)


def from_openai(state: dict[str, Tensor], n_head: int | None = None, text_ids: list[int] | None = None) -> GPT:
    """A GPT-2 state dict in Hugging Face's layout, of any size -> our model. Raises ValueError on a wrong shape."""
    drop = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # causal masks, and wte a second time
    try:
        state = {k.removeprefix("transformer."): v.float() for k, v in state.items() if not k.endswith(drop)}
        (V, C), (n_ctx, _) = state["wte.weight"].shape, state["wpe.weight"].shape
    except (AttributeError, KeyError, ValueError) as e:
        raise ValueError(f"these are no GPT-2 weights in Hugging Face's layout ({e})") from e
    L, n_head = sum(k.endswith("ln_1.weight") for k in state), n_head or max(1, C // 64)
    model = GPT(Config(L, n_head, C, n_ctx, V), text_ids)
    # OpenAI stored Linear weights as [in, out]; ours are torch's [out, in]
    state = {k: v.T.contiguous() if k.endswith(TRANSPOSED) else v for k, v in state.items()}
    return _fill(model, {"think": model.think.data, "think_offset": model.think_offset.data, **state})


def _fill(model: GPT, state: dict[str, Tensor]) -> GPT:
    try:
        model.load_state_dict(state)
    except RuntimeError as e:  # torch lists every key: one line of it is enough to see what is wrong
        raise ValueError(f"the weights do not fit the model that they describe: {str(e).splitlines()[1].strip()}") from e
    return model


def load(name: str | Path) -> GPT:
    """A model by name (pico, pico-teacher, gpt2, gpt2-medium, gpt2-large, gpt2-xl) or by path: our checkpoint,
    a Hugging Face .bin or .safetensors file, or a folder of Hugging Face's. Raises ValueError, one line."""
    if str(name) in SIZES:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}-pytorch_model.bin"
        path = download(WEIGHTS.format(name), cached, GPT2_SHA256 if name == "gpt2" else None)
        return from_openai(read_weights(path), SIZES[name][1])
    path = PICO.get(str(name), Path(name))
    if not path.exists():
        raise ValueError(f"there is no model {str(name)!r}: neither a file or folder nor one of {', '.join([*PICO, *SIZES])}")
    n_head = text_ids = None
    if (path / "ckpt.pt").exists() and not (path / "config.json").exists():  # the folder of a run
        path = path / "ckpt.pt"
    if path.is_dir():
        try:
            config = json.loads((path / "config.json").read_text())
            n_head, text_ids = config["n_head"], config.get("text_ids")  # the latter is `export`'s
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"{path} has no config.json of a GPT-2 (with n_head)") from e
        found = [path / f for f in ("model.safetensors", "pytorch_model.bin") if (path / f).exists()]
        if not found:
            raise ValueError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
        path = found[0]
    state = read_weights(path)
    if "config" not in state:
        return from_openai(state, n_head, text_ids)
    try:
        return _fill(GPT(Config(**state["config"]), state["text_ids"]), state["model"])
    except (KeyError, TypeError) as e:
        raise ValueError(f"{path} has a config, but is no checkpoint of ours ({e})") from e


def read_weights(path: Path) -> dict:
    """A file of weights, never one that runs code (weights_only). Raises ValueError (one line) for any other."""
    if path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as e:
            raise ValueError(f"{path} needs `pip install safetensors`, or save it as pytorch_model.bin") from e
        try:
            return load_file(str(path))
        except (OSError, SafetensorError) as e:
            raise ValueError(f"{path} can't be read as weights, it is damaged ({type(e).__name__})") from e
    sealed = is_sealed(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # damage can meet the reader of pickles anywhere: IndexError, RuntimeError, OSError, ...
        what = "what would run code (weights_only)" if isinstance(e, pickle.UnpicklingError) else "something else"
        raise ValueError(f"{path} can't be read as weights, it is damaged or holds {what} ({type(e).__name__})") from e
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of weights")
    if state.get("format", 1) not in (1, FORMAT):
        raise ValueError(f"{path} is of a newer version: format {state['format']!r}, and this code reads 1 and {FORMAT}")
    if state.get("format") == FORMAT and not sealed:
        raise ValueError(f"{path} has lost its end, with the checksum: it is damaged")
    return state


def digest(f: BinaryIO, size: int) -> bytes:
    """The seal of a file's next `size` bytes."""
    sha = hashlib.sha256()
    while block := f.read(min(1 << 22, size)):
        sha.update(block)
        size -= len(block)
    return SEAL + sha.hexdigest().encode()


def is_sealed(path: Path) -> bool:
    """Does it end in a checksum? (OpenAI's files and older ones have none.) Raises ValueError where that differs: a flipped bit
    in a weight would be loaded in silence."""
    with open(path, "rb") as f:
        size = max(0, f.seek(0, os.SEEK_END) - len(SEAL) - 64)
        f.seek(size)
        end = f.read()
        f.seek(0)
        if end.startswith(SEAL) and digest(f, size) != end:
            raise ValueError(f"{path} is damaged: its checksum differs")
    return end.startswith(SEAL)


def save(path: Path, state: dict) -> None:
    """A checkpoint, whole or not at all: written beside, sealed, flushed to the disk, renamed. Whatever happens, what was at
    `path` before stays whole. Raises OSError."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "w+b") as f:
            torch.save({"format": FORMAT, **state}, f)
            size = f.tell()
            f.seek(0)
            f.write(digest(f, size))
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except RuntimeError as e:  # torch's word for a write that failed, without the system's reason
        raise OSError(f"{part} can't be written whole: the disk is full, or files may not grow so large") from e
    finally:
        part.unlink(missing_ok=True)


def as_checkpoint(model: GPT) -> dict:
    """What `load` reads back; training adds its own keys beside these."""
    return {"config": asdict(model.config), "text_ids": model.text_ids,
            "model": {k: v.detach().cpu() for k, v in model.state_dict().items()}}


def export(model: GPT, folder: Path) -> None:
    """The text part as a folder that Hugging Face's `transformers` loads (GPT2LMHeadModel.from_pretrained), with equal logits.
    Thinking rows stay behind: that library has no place for what is no text. Raises OSError."""
    c, folder = model.config, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"transformer.{k}": v.T.contiguous() if k.endswith(TRANSPOSED) else v
             for k, v in model.state_dict().items() if k not in ("think", "think_offset")}
    torch.save(state | {"lm_head.weight": model.wte.weight.data}, folder / "pytorch_model.bin")
    rows = model.text_ids or range(c.vocab_size)
    end = list(rows).index(50256) if 50256 in rows else None  # a small language has no end of text
    (folder / "config.json").write_text(json.dumps({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": c.vocab_size, "n_positions": c.n_ctx,
        "n_embd": c.n_embd, "n_layer": c.n_layer, "n_head": c.n_head, "activation_function": "gelu_new",
        "bos_token_id": end, "eos_token_id": end, "tie_word_embeddings": True, "text_ids": model.text_ids}, indent=1))


if __name__ == "__main__":
    import argparse
    p = argparse.ArgumentParser(description="Export a model's text part for Hugging Face; without --export: a demonstration.")
    p.add_argument("--model", default="pico", help="a name or a path")
    p.add_argument("--export", type=Path, metavar="DIR", help="folder to write")
    args = p.parse_args()
    try:
        gpt = load(args.model)
        if args.export:
            export(gpt, args.export)
    except (ValueError, OSError) as e:
        p.exit(2, f"model.py: {e}\n")
    if args.export:
        print(f"{args.export}/ holds pytorch_model.bin and config.json; "
              f"GPT2LMHeadModel.from_pretrained({str(args.export)!r}) loads it. Its tokenizer is GPT-2's own"
              + ", and row i of the model its id text_ids[i] (in config.json)" * (gpt.text_ids is not None))
    else:
        text = torch.arange(min(24, gpt.config.vocab_size))[None]
        before = gpt.text_logits(gpt(text))
        print(f"{args.model}: {sum(x.numel() for x in gpt.parameters()):,} parameters, {gpt.config}")
        if not len(gpt.think):
            p_think = gpt.grow(16, text, 0.1, torch.Generator().manual_seed(0))
            print(f"grown by 16 thinking rows: p_think is {p_think['mean']:.3f} in the mean, {p_think['p05']:.3f} to "
                  f"{p_think['p95']:.3f} (5-95 %); text logits bit-equal: {torch.equal(before, gpt.text_logits(gpt(text)))}")
