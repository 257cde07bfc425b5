"""How fast it is, next to what people would use instead, and next to what the machine could do.

    python -m lab.bench                                  # all: bench.json and a picture
    python -m lab.bench --only rollout loss --threads 1  # some; bench.json keeps the others

Arms that are compared run in turn (A B A B), since a shared machine drifts by a quarter within
minutes. Shown are medians. `x ours` is the median of the ratios pair by pair: over 1, ours is
faster. `limit` is the share of the roofline, the shortest possible time: what the same matrix
products would take at the best rate seen in this run, or one pass over the weights where that is
longer. Attention and sampling are left out of it.

Weights are random, as speed does not depend on them. On a GPU the same sections run there, and
`compile` has bfloat16 and CUDA graphs. The peers: pip install -r tests/requirements-bench.txt

Left out on purpose: int8, which is another policy than the one that is trained; several GPUs;
servers. Knows train.py and all below it, and lab/export.py.

Letters: B contexts, G siblings, P prompt tokens, S new text tokens, V text rows, N thinking rows,
C width, n states.
"""
import contextlib
import functools
import importlib.util
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import command
import reward
import train
from data import Source, plain
from fast import in_pieces, sampler_of, unembed
from lab.export import their_config, their_weights
from model import GPT, Config
from next_token import layout, read_prompt_once, roll, states
from rollout import GREEDY, Rules, draw, rollout
from run import Run
from settings import Parser, parser, resolve

ROOT = Path(__file__).resolve().parent.parent
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


class Size(NamedTuple):
    """How large everything is. config: the model; small: that of `scale`, whose dials are turned
    one at a time. batches: rows of a rollout. rounds: how often each arm runs. tokens: states of
    `loss`. updates: steps of a run. branches: texts, tokens of each, thoughts per branch. cups:
    steps of the game. thoughts: per row, of `continuous`. peak, stream: `roofline`'s."""
    config: Config
    small: Config
    batches: tuple
    P: int
    S: int
    rounds: int
    tokens: int
    updates: int
    branches: tuple
    cups: int
    dials: dict
    thoughts: tuple
    peak: float = 0.0
    stream: float = 0.0


DIALS = dict(prompts=(1, 2, 4, 8), new_tokens=(16, 32, 64, 128), max_thoughts=(1, 2, 4, 8),
             think_vocab=(256, 2048, 16384))
FULL = Size(config=Config(think_vocab=2048), small=Config(6, 6, 384, think_vocab=2048),
            batches=(1, 16, 64), P=64, S=64, rounds=3, tokens=1024, updates=3, branches=(2, 64, 8),
            cups=40, dials=DIALS, thoughts=(8, 32))
QUICK = Size(config=Config(2, 2, 32, 128, 400, 50), small=Config(1, 2, 32, 128, 400, 50),
             batches=(2,), P=8, S=8, rounds=1, tokens=64, updates=2, branches=(2, 6, 2), cups=3,
             dials=dict(prompts=(1, 2)), thoughts=(2,))


# The clock, and what else is measured

def now() -> float:
    """Seconds. With one thread on a CPU these are its CPU seconds, so that others who take turns
    on the same core do not count."""
    if GPU:
        torch.cuda.synchronize()
    alone = torch.get_num_threads() == 1 and not GPU
    return time.process_time() if alone else time.perf_counter()


def seconds(task: Callable) -> float:
    start = now()
    task()
    return now() - start


def wall(task: Callable) -> float:
    """Seconds on the wall, where other processes do the work."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def interleave(arms: dict[str, Callable], rounds: int, warm: bool = True,
               clock: Callable = seconds) -> dict[str, list[float]]:
    """Seconds of each arm, in turn: A B A B, after one warm-up."""
    runs = [{name: clock(task) for name, task in arms.items()}
            for _ in tqdm(range(rounds + warm), desc=next(iter(arms)), leave=False)]
    return {name: [run[name] for run in runs[warm:]] for name in arms}


def fresh(task: Callable, *args):
    """Its result from a new process, whose peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *args).result()


def memory(key: str) -> float:
    """MiB of this process: VmRSS, now, or VmHWM, the highest so far. On a GPU what torch has of
    it. nan where neither can be asked."""
    if GPU:
        ask = {"VmRSS": torch.cuda.memory_allocated, "VmHWM": torch.cuda.max_memory_allocated}
        return ask[key]() / 2 ** 20
    # (ru_maxrss would be the parent's, where that is larger)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [line.split()[1] for line in lines if line.startswith(key)]
    return int(found[0]) / 1024 if found else float("nan")


def have(package: str) -> bool:
    there = importlib.util.find_spec(package) is not None
    if not there:
        print(f"  ({package} is not installed, its arm is skipped: pip install -r "
              "tests/requirements-bench.txt)")
    return there


def show(title: str, times: dict[str, list[float]], limit: float = 0.0,
         peaks: dict[str, float] | None = None) -> dict:
    """Print one comparison with ours, the first arm; what is returned goes to bench.json."""
    print(f"  {title:<66} {'seconds':>9} {'x ours':>7} {'limit':>6} {'MiB':>6}")
    ours, table = next(iter(times.values())), {}
    for arm, spent in times.items():
        middle, ratio = median(spent), median(b / a for a, b in zip(ours, spent))
        table[arm] = row = {"seconds": middle, "all": spent, "x_ours": ratio,
                            "limit": limit / middle, "peak_mib": peaks[arm] if peaks else 0.0}
        share = f"{row['limit']:.0%}" if limit else ""
        peak = f"{row['peak_mib']:.0f}" if peaks else ""
        print(f"    {arm:<64} {middle:9.4f} {ratio:7.2f} {share:>6} {peak:>6}")
    return {"title": title, "arms": table}


def roofline(config: Config) -> tuple[float, float]:
    """-> FLOP/s of the best large product, bytes/s of a pass over the unembedding: the best of
    ten."""
    a, b, x = (torch.randn(1024, n, device=DEVICE).T for n in (1024, 1024, config.n_embd))
    rows = torch.randn(config.vocab_size, config.n_embd, device=DEVICE)
    rates = [(2 * 1024 ** 3 / seconds(lambda: a @ b),
              2 * rows.numel() * 1024 / seconds(lambda: unembed(x.T, rows)),
              4 * rows.numel() / seconds(rows.sum)) for _ in range(10)]
    gemm, wide, stream = (max(rate) for rate in zip(*rates))
    return max(gemm, wide), stream


def least(model: GPT, steps: list[tuple[int, int]], size: Size) -> float:
    """The fewest seconds that forwards can take. steps: for each, its rows, and how many of them
    get text logits."""
    body, vocab = (sum(p.numel() for p in m.parameters()) for m in (model.h, model.wte))
    return sum(max(2 * (rows * body + heads * vocab) / size.peak,
                   4 * (body + (heads > 0) * vocab) / size.stream) for rows, heads in steps)


# Sampling: sections `rollout` and `sampler`

def hugging_face(model: GPT):
    """The same weights in transformers' class, text rows alone."""
    from transformers import GPT2Config, GPT2LMHeadModel
    config = GPT2Config(**their_config(model), resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
                        bos_token_id=0, eos_token_id=None)  # it never ends by itself
    peer = GPT2LMHeadModel(config)
    peer.load_state_dict(their_weights(model) | {"lm_head.weight": model.wte.weight})
    return peer.eval().to(DEVICE)


def ctranslate(peer, V: int):
    """transformers' model as CTranslate2's, float32. It speaks words: ids are written out."""
    import ctranslate2
    from ctranslate2.converters.transformers import GPT2Loader
    spec = GPT2Loader().get_model_spec(peer)
    spec.register_vocabulary([str(i) for i in range(V)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.validate()
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        return ctranslate2.Generator(folder, device=DEVICE, compute_type="float32",
                                     intra_threads=torch.get_num_threads())


def numbers(u: Tensor) -> Callable:
    """These random numbers instead of `Luck`'s: to draw them is no part of what is measured."""
    return lambda draws, *_: u[:draws]


def rollouts(size: Size) -> list[dict]:
    """P + S tokens: ours with text alone, what others generate, and ours with free thoughts."""
    model, tables, (P, S) = GPT(size.config).to(DEVICE), [], (size.P, size.S)
    V, hf = model.config.vocab_size, hugging_face(model) if have("transformers") else None
    ct = ctranslate(hf, V) if hf is not None and have("ctranslate2") else None
    free = Rules("free", max_thoughts=1, budget=S // 2)
    for B in size.batches:
        ids, luck = torch.randint(V, (B, P), device=DEVICE), numbers(torch.rand(2 * S, B, 2))
        text, words = plain(ids, P, S), [[str(i) for i in row] for row in ids.tolist()]
        arms = {"ours, text alone": lambda: rollout(model, text, Rules("never"), luck)}
        if hf is not None:
            arms["Hugging Face generate, dynamic cache"] = lambda: hf.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=S, do_sample=True,
                top_k=0, pad_token_id=0)
        if ct is not None:
            arms["CTranslate2, float32"] = lambda: ct.generate_batch(
                words, max_length=S, min_length=S, sampling_topk=0,
                include_prompt_in_result=False)
        arms[f"ours, free thoughts, {S // 2} more places"] = lambda: rollout(model, text, free,
                                                                             luck)
        limit = least(model, [(B * P, B)] + [(B, B)] * (S - 1), size)
        tables.append(show(f"B = {B}, {P} + {S} tokens", interleave(arms, size.rounds), limit))
    return tables


def sampler(size: Size) -> list[dict]:
    """One id per row, from a softmax."""
    rows = size.config.vocab_size + size.config.think_vocab
    logits, u = torch.randn(16, rows, device=DEVICE), torch.rand(16, device=DEVICE)
    arms = {"ours: two-level inverse CDF": lambda: draw(logits, u, 1.0),
            "torch.multinomial": lambda: torch.multinomial(logits.softmax(-1), 1),
            "Gumbel, by exponential_": lambda: (
                logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)}
    return [show(f"a draw from {list(logits.shape)}", interleave(arms, 10 * size.rounds))]


# The loss

def loss_arm(arm: str, config: Config, n: int, threads: int) -> tuple[float, float]:
    """-> seconds forward + backward, MiB at the peak above states and weights."""
    torch.set_num_threads(threads)
    # the peer has all rows in one matrix, which suits it best
    N = config.think_vocab if arm == "ours" else 0
    V, C = config.vocab_size + config.think_vocab - N, config.n_embd
    h, wte, think = (torch.empty(rows, C, device=DEVICE).normal_(std=0.02).requires_grad_()
                     for rows in (n, V, N))
    bias = torch.zeros((), device=DEVICE, requires_grad=True)
    y = torch.randint(V, (n,), device=DEVICE)

    def entropy(logits, V, y):
        return F.cross_entropy(logits, y, reduction="sum"), 0

    def task() -> None:
        h.grad = wte.grad = think.grad = bias.grad = None
        total, _ = (in_pieces(entropy, h, wte, think, bias, [y]) if arm == "ours" else
                    entropy(h @ wte.T, V, y))
        total.backward()

    before = memory("VmRSS")
    times = [seconds(task) for _ in range(3)]
    return median(times[1:]), memory("VmHWM") - before


def in_turn(title: str, arms: dict[str, tuple], rounds: int, limit: float = 0.0) -> dict:
    """Arms (task, *arguments) that return seconds and peak MiB, each time in a new process:
    A B A B."""
    runs = [{name: fresh(*task) for name, task in arms.items()}
            for _ in tqdm(range(rounds), desc=title, leave=False)]
    times, peaks = ({name: [run[name][i] for run in runs] for name in arms} for i in (0, 1))
    return show(title, times, limit, {name: median(x) for name, x in peaks.items()})


def loss(size: Size) -> list[dict]:
    """Unembedding and log-probs over all rows, forward + backward."""
    config, n, threads = size.config, size.tokens, torch.get_num_threads()
    rows = config.vocab_size + config.think_vocab
    arms = {"ours: in pieces, gradients formed in the forward": "ours", "F.cross_entropy": "plain"}
    return [in_turn(f"log-probs [{n}, {rows}] and their gradient (MiB above inputs)",
                    {name: (loss_arm, arm, config, n, threads) for name, arm in arms.items()},
                    size.rounds, 3 * 2 * n * rows * config.n_embd / size.peak)]


# An update: sections `update`, `continuous`, `cups` and `scale`

class Noise(Source):
    """Random ids, where train.py expects text."""

    def __init__(self, V: int):
        self.text_ids = list(range(V))

    def take(self, rows, L, rng, prompt=0, held_out=False):
        return torch.from_numpy(rng.integers(len(self.text_ids), size=(rows, L)))


# names in bench.json -> a function of the loop, and the module in which the loop finds it
PARTS = {"contexts": (train, "take_text"), "rollout": (train, "roll"),
         "teacher_states": (reward, "teacher_states"), "slot_rewards": (train, "score"),
         "advantages": (train, "advantages"), "gradient_pass": (train, "backward")}


class Clock:
    """Around the parts of train.py's loop, and instead of `Run.steps`, which would log and save."""

    def __init__(self):
        self.stamps, self.parts, self.inside = [], dict.fromkeys(PARTS, 0.0), []

    def steps(self, run: Run):
        while run.progress.step < run.progress.end:
            yield run.progress.step
            if not self.stamps:  # the first step is a warm-up, in its parts as well
                self.parts = dict.fromkeys(PARTS, 0.0)
            self.stamps.append(now())

    def around(self, name: str) -> Callable:
        """This part, with its time added up. A part within a part belongs to the outer one: where
        the model writes its own text, `contexts` has a rollout inside. The teacher alone is taken
        out of the score."""
        task = getattr(*PARTS[name])

        def timed(*args, **kwargs):
            if self.inside and name != "teacher_states":
                return task(*args, **kwargs)
            self.inside.append(name)
            start = now()
            out = task(*args, **kwargs)
            spent = now() - start
            self.inside.pop()
            self.parts[name] += spent
            if self.inside:
                self.parts[self.inside[-1]] -= spent
            return out
        return timed


def train_loop(run: Run) -> tuple[list[float], dict[str, float]]:
    """train.py's own loop without evaluations and files -> seconds of each step except the first,
    share of each part."""
    clock = Clock()
    run.steps = lambda: clock.steps(run)
    with contextlib.ExitStack() as stack:
        for name, (module, function) in PARTS.items():
            stack.enter_context(patch.object(module, function, clock.around(name)))
        train.train(run)
    whole = clock.stamps[-1] - clock.stamps[0]
    shares = {name: spent / whole for name, spent in clock.parts.items()}
    rest = {"the rest (the optimizer)": 1 - sum(shares.values())}
    return np.diff(clock.stamps).tolist(), shares | rest


def new_run(flags: list, source: Source | None = None) -> Run:
    """train.py's run with these flags."""
    with contextlib.redirect_stdout(io.StringIO()):
        return train.setup(resolve(vars(parser().parse_args([str(x) for x in flags]))), source)


class Spent(NamedTuple):
    """Of an update: seconds, MiB of the whole process at its peak, seconds of its gradient pass."""
    seconds: float
    peak: float
    gradient: float


def update_arm(flags: list, config: Config, threads: int) -> Spent:
    """An update of train.py with these flags on noise."""
    torch.set_num_threads(threads)
    base, noise = replace(config, think_vocab=0), Noise(config.vocab_size)
    with patch.object(train, "load", lambda name: GPT(base, noise.text_ids)):
        run = new_run(["--data", "webtext", "--model", "gpt2", *flags], noise)
    times, shares = train_loop(run)
    middle = median(times)
    return Spent(middle, memory("VmHWM"), middle * shares["gradient_pass"])


def trl_arm(config: Config, B: int, G: int, P: int, S: int, steps: int,
            threads: int) -> tuple[float, float]:
    """The same with TRL: leave-one-out over G samples, no KL term, a teacher's mean log-prob as
    reward."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer
    torch.set_num_threads(threads)
    V, stamps = config.vocab_size, []
    student, teacher = (hugging_face(GPT(config)) for _ in range(2))
    # ids written out
    words = Tokenizer(models.WordLevel({str(i): i for i in range(V)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0")

    @torch.no_grad()
    def reward(prompts, completion_ids, **_) -> list[float]:
        ids = torch.tensor([[int(w) for w in p.split()] + c
                            for p, c in zip(prompts, completion_ids)], device=DEVICE)
        logits = teacher(ids[:, :-1], logits_to_keep=S).logits.transpose(1, 2)  # [B * G, V, S]
        return (-F.cross_entropy(logits, ids[:, P:], reduction="none")).mean(1).tolist()

    class Stamps(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            stamps.append(-now())

        def on_step_end(self, *args, **kwargs):
            stamps[-1] += now()

    rows = torch.randint(1, V, (B * steps, P)).tolist()
    prompts = Dataset.from_dict({"prompt": [" ".join(map(str, row)) for row in rows]})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = RLOOConfig(
            folder, per_device_train_batch_size=B * G, num_generations=G, max_completion_length=S,
            beta=0.0, max_steps=steps, report_to="none", save_strategy="no", use_cpu=not GPU,
            bf16=False, gradient_checkpointing=False, disable_tqdm=True,
            generation_kwargs={"min_new_tokens": S})
        RLOOTrainer(student, reward, settings, train_dataset=prompts, processing_class=words,
                    callbacks=[Stamps()]).train()
    return median(stamps[1:]), memory("VmHWM")


def updates(size: Size) -> list[dict]:
    """One step on 2 prompts x 4 samples, with a teacher."""
    config, P, S, threads = size.config, size.P, size.S, torch.get_num_threads()
    flags = ["--prompts", 2, "--samples", 4, "--prompt_tokens", P, "--new_tokens", S, "--steps",
             size.updates]
    same = [*flags, "--thoughts", "none", "--reward", "sampled", "--gamma", 1]
    thoughts = [*flags, "--think_vocab", config.think_vocab]
    arms = {"ours, as TRL's: text alone, sampled log-prob": (update_arm, same, config, threads)}
    if have("trl"):
        arms["TRL's RLOOTrainer"] = trl_arm, config, 2, 4, P, S, size.updates, threads
    arms["ours, the default: free thoughts, exact KL"] = update_arm, thoughts, config, threads
    return [in_turn(f"an update, 2 x 4 samples, {P} + {S} tokens (MiB of the process)", arms,
                    max(1, size.rounds - 1))]


def continuous(size: Size) -> list[dict]:
    """k thoughts, one after each of the first k tokens: as ids, sampled and then read in one
    forward with gradient; and as vectors, where the gradient passes through k thoughts one after
    the other."""
    tables, P, S, threads = [], size.P, size.S, torch.get_num_threads()
    kinds = {"ids": ["--think_vocab", size.config.think_vocab],
             "vectors": ["--thoughts", "continuous"]}
    for k in size.thoughts:
        flags = ["--approach", "stream", "--think", "forced", "--prompts", 2, "--samples", 4,
                 "--prompt_tokens", P, "--new_tokens", S, "--budget", k, "--steps", size.updates]
        runs = {kind: fresh(update_arm, flags + more, size.config, threads)
                for kind, more in kinds.items()}
        title = f"an update, 8 texts of {P} + {S} tokens, {k} thoughts each (MiB of the process)"
        tables += [show(title, {kind: [run.seconds] for kind, run in runs.items()},
                        peaks={kind: run.peak for kind, run in runs.items()}),
                   show("its gradient pass alone",
                        {kind: [run.gradient] for kind, run in runs.items()})]
    return tables


def cups(size: Size) -> list[dict]:
    """What a machine without a GPU runs: updates in the first stage and in the last, and where the
    time goes."""
    tables = []
    for approach, stage in (("teacher", 1), ("teacher", 10), ("stream", 1), ("stream", 10)):
        run = new_run(["--data", "cups", "--approach", approach, "--steps", size.cups])
        # so it never leaves this stage, and is not ended
        run.progress.stage = run.source.stages = stage
        run.progress.wanted = True
        times, shares = train_loop(run)
        title = f"cups, rounds of {stage}: {1 / median(times):.1f} updates a second"
        tables.append(show(title, {approach: times}) | {"shares": shares})
        print("      " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()
                                   if share >= 0.005))
    return tables


def scale(size: Size) -> list[dict]:
    """Time and memory of an update, one dial turned at a time: figures/bench_scale.png."""
    base = {"prompts": 2, "new_tokens": size.S // 2, "max_thoughts": 1,
            "think_vocab": size.small.think_vocab}
    points = [(name, x, base | {name: x}, size.small)
              for name, values in size.dials.items() for x in values]
    points += [("parameters", sum(p.numel() for p in GPT(c).parameters()), base, c)
               for c in (size.small, size.config)]
    found = {}
    for name, x, dials, config in tqdm(points, desc="scale", leave=False):
        flags = [word for dial, value in dials.items() for word in (f"--{dial}", value)]
        flags += ["--prompt_tokens", size.S // 2, "--steps", 3, "--budget",
                  dials["new_tokens"] * dials["max_thoughts"] // 2]
        spent = fresh(update_arm, flags, config, torch.get_num_threads())
        found.setdefault(name, []).append((x, spent.seconds, spent.peak))
    tables = []
    for name, points in found.items():
        x, *measured = zip(*points)
        lines = {unit: straight(x, y) for unit, y in zip(("s", "MiB"), measured)}
        print(f"  {name:<13}" + "   ".join(f"{x:.4g}: {spent:.2f} s, {peak:.0f} MiB"
                                           for x, spent, peak in points))
        print(" " * 15 + ", ".join(f"{once:.4g} + {each:.3g} {unit} each (at most {off:.0%} off)"
                                   for unit, (once, each, off) in lines.items()))
        tables.append({"title": name, "points": points, "line": lines})
    draw_growth(found)
    return tables


def draw_growth(found: dict[str, list[tuple]]) -> None:
    """dial -> points (its value, seconds, MiB), a column each. Lines are those of `straight`."""
    plt = command.pyplot()
    figure, axes = plt.subplots(2, len(found), figsize=(2.2 * len(found), 4), squeeze=False,
                                sharex="col", sharey="row", layout="constrained")
    for column, (name, points) in zip(axes.T, found.items()):
        x, *measured = (np.array(values) for values in zip(*points))
        for axis, y in zip(column, measured):
            once, each, _ = straight(x, y)
            axis.plot([0, max(x)], [once, once + each * max(x)], "C0", alpha=0.5)
            axis.plot(x, y, "C0o")
        column[0].set_title(name, size=11)
        most = f"{max(x) / 1e6:.0f}M" if max(x) >= 1e6 else f"{max(x):,.0f}"
        column[1].set_xticks([0, max(x)], ["0", most])
    axes[0, 0].set(ylabel="seconds an update", ylim=(0, None))
    axes[1, 0].set(ylabel="MiB at the peak", ylim=(0, None))
    Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/bench_scale.png", dpi=110)
    plt.close(figure)


def straight(x, y) -> tuple[float, float, float]:
    """The line that points lie on, if they do: what there is at 0, what each unit adds, and how far
    off the worst of them is, as a share of itself."""
    each, once = np.polyfit(x, y, 1)
    off = max(abs(once + each * np.array(x) - y) / np.array(y))
    return float(once), float(each), float(off)


# Branches, torch.compile, and the first seconds

def next_token(size: Size) -> list[dict]:
    """S branches of K thoughts for a text of S tokens: packed in one row, and one by one."""
    (B, S, K), rounds = size.branches, max(1, size.rounds - 1)
    model, rules = GPT(size.config).to(DEVICE), Rules("free", K, K, persist=False)
    ids = torch.randint(model.config.vocab_size, (B, S + 1), device=DEVICE)
    u = torch.rand(K, B, S, 2)
    ours, theirs, done = "ours: packed", "a loop over prefixes, each with its cache", {}

    def sample() -> None:
        done[ours] = [roll(model, plain(ids, 1, S), rules, numbers(u.flatten(1, 2)))]

    def sample_loop() -> None:
        done[theirs] = [roll(model, plain(ids[:, :i + 1], i, 1), rules, numbers(u[:, :, i - 1]))
                        for i in range(1, S + 1)]

    def gradient(name: str) -> None:
        model.zero_grad()
        weight = torch.linspace(-1, 1, model.config.n_embd, device=DEVICE)
        for ro in done[name]:
            (states(model, ro, rules) * weight).sum().backward()

    title = f"next_token, {B} texts x {S} branches x {K} thoughts: "
    steps = [(B * (S + 1), B * S)] + [(B * S, B * S)] * (K - 1) + [(B * S, 0)]
    spent = interleave({ours: sample, theirs: sample_loop}, rounds, False)
    tables = [show(title + "rollouts", spent, least(model, steps, size))]
    arms = {name: functools.partial(gradient, name) for name in done}
    limit = 3 * least(model, [(B * (S + 1 + S * K), 0)], size)
    return [*tables, show(title + "gradient", interleave(arms, rounds, False), limit)]


def prompt(size: Size) -> list[dict]:
    """Forward and backward, without head and loss, of four siblings with a long prompt in common
    and a thought after each new token."""
    P, S, model = size.P, size.S // 4, GPT(size.config).to(DEVICE)
    text = plain(torch.randint(model.config.vocab_size, (1, P + S), device=DEVICE), P, S).repeat(4)
    rules = Rules("forced", 1, S)
    ro = roll(model, text, rules, numbers(torch.rand(2 * S, 4, 2)))
    positions, mask = layout(ro, rules)

    def learn(h: Tensor) -> None:
        model.zero_grad()
        h.sum().backward()
    arms = {"ours: the prompt once": lambda: learn(read_prompt_once(model, ro, positions, mask)),
            "whole rows": lambda: learn(model(ro.ids, positions, mask))}
    return [show(f"four siblings without head and loss, {P} + {S} tokens, {S} thoughts",
                 interleave(arms, size.rounds))]


def compiled(size: Size) -> list[dict]:
    """The rollout with torch.compile: what it saves, what the first one costs, and does it go on
    compiling?"""
    B, P, S = size.batches[-1], size.P, size.S
    model, said = GPT(size.config).to(DEVICE), {}
    ids = torch.randint(model.config.vocab_size, (B, P), device=DEVICE)
    text, luck = plain(ids, P, S), numbers(torch.rand(S, B, 2))
    dtype, counters = torch.bfloat16 if GPU else torch.float32, torch._dynamo.utils.counters
    fast = sampler_of(model, dtype, True)

    def run(name: str, sampler) -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=GPU):
            said[name] = rollout(sampler, text, Rules("never"), luck, GREEDY).ids

    counters.clear()
    try:
        first = wall(lambda: run("compiled", fast))
    except Exception as e:  # whatever torch meets where there is no C++ compiler
        print(f"  torch.compile does not run here: {str(e).splitlines()[0]}")
        return []
    early = counters["stats"]["unique_graphs"]
    arms = {"ours, eager": lambda: run("eager", model),
            "ours, torch.compile": lambda: run("compiled", fast)}
    if GPU and have("transformers"):
        hf = hugging_face(model).bfloat16()
        arms["Hugging Face generate, static cache"] = lambda: hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=S, do_sample=False,
            pad_token_id=0, cache_implementation="static")
    table = show(f"rollout, B = {B}, {P} + {S}{', bfloat16' if GPU else ''}",
                 interleave(arms, size.rounds))
    late = counters["stats"]["unique_graphs"]
    same = (said["eager"] == said["compiled"]).float().mean().item()
    print(f"    the first takes {first:.1f} s; {early} graphs after it, {late} at the end; greedy "
          f"ids {same:.1%} equal")
    return [table | {"first": first, "graphs": [early, late], "same_ids": same}]


def start(size: Size) -> list[dict]:
    """How long until something happens."""
    def command(*words: str) -> Callable:
        return lambda: subprocess.run([sys.executable, *words], cwd=ROOT, check=True,
                                      capture_output=True)

    def first_step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "metrics.jsonl"
            words = [sys.executable, "train.py", "--think_vocab", "2048", "--out", folder]
            with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as process:
                while process.poll() is None and not (
                        log.exists() and '"kind": "step"' in log.read_text()):
                    time.sleep(0.05)
                process.kill()

    arms = {"python train.py --help": command("train.py", "--help"),
            "python -c 'import torch'": command("-c", "import torch"),
            "python train.py --think_vocab 2048, until its first step is done": first_step}
    return [show("start", interleave(arms, size.rounds, clock=wall))]


# The command

SECTIONS = {"rollout": rollouts, "sampler": sampler, "loss": loss, "update": updates,
            "next_token": next_token, "continuous": continuous, "cups": cups, "scale": scale,
            "prompt": prompt, "compile": compiled, "start": start}


def arguments():
    p = Parser(prog="lab.bench", description=command.first_line(__doc__), allow_abbrev=False)
    p.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS),
                   metavar="SECTION", help=", ".join(SECTIONS))
    p.add_argument("--threads", type=int, default=torch.get_num_threads(),
                   help="torch's [as torch would have it]")
    p.add_argument("--rows", type=int, nargs="+", metavar="B",
                   help="of `rollout`; `compile` takes the last [1 16 64]")
    p.add_argument("--quick", action="store_true",
                   help="tiny shapes: do all arms run? The numbers mean nothing")
    args = p.parse_args()
    for flag, least in (("--threads", args.threads), ("--rows", min(args.rows or [1]))):
        if least < 1:
            p.error(f"{flag} must be at least 1, not {least}")
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    out, size = Path("bench.json"), QUICK if args.quick else FULL
    peak, stream = roofline(size.config)
    size = size._replace(peak=peak, stream=stream, batches=args.rows or size.batches)
    device = torch.cuda.get_device_name() if GPU else f"CPU, {os.cpu_count()} cores"
    print(f"{device}, {args.threads} threads, torch {torch.__version__}: {peak / 1e9:.0f} GFLOP/s, "
          f"{stream / 1e9:.1f} GB/s" + ("" if GPU else "; on a GPU: unmeasured, there is none"))
    for name in args.only:
        print(name)
        torch.manual_seed(0)
        # how many others run, on a shared machine
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        section = {"device": device, "threads": args.threads, "torch": torch.__version__,
                   "load": load, "quick": args.quick, "gflops": peak / 1e9,
                   "gb_per_second": stream / 1e9, "tables": SECTIONS[name](size)}
        results = json.loads(out.read_text()) if out.exists() else {}
        results[f"{name}, threads {args.threads}" + ", quick" * args.quick] = section
        command.write_whole(out, (command.as_json(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    command.run(main, goes_on=True)
