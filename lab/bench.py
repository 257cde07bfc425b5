"""How fast it is, beside what people would use instead, and how far from what the machine could do.

    python -m lab.bench                                 # one table, bench.json, figures/bench_scale.png
    python -m lab.bench --only rollout loss --threads 1 # some sections; bench.json keeps what it has of the others

Arms that are compared run in turn (A B A B), since a shared machine drifts by a quarter within minutes. Shown are medians;
`x ours` is the median of the ratios pair by pair: over 1, ours is faster. `limit` is the share of the roofline: what the same
matrix products would take at the best rate seen in this run, or one pass over the weights where that is longer (attention
and sampling left out). Weights are random, as speed does not depend on them. On a GPU the same sections run there, and
`compile` has bfloat16 and CUDA graphs. The peers: pip install -r tests/requirements-bench.txt

Left out on purpose: int8 (another policy than the one that is trained), several GPUs, servers. Knows train.py and all below it.
"""
import contextlib
import copy
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
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import train
from data import Batch
from model import GPT, TRANSPOSED, Config, unembed
from reward import _Pieces
from rollout import Rules, draw, rollout, states
from settings import Parser, parse, resolve

ROOT = Path(__file__).resolve().parent.parent
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DIALS = dict(prompts=(1, 2, 4, 8), new_tokens=(16, 32, 64, 128), max_thoughts=(1, 2, 4, 8), think_vocab=(256, 2048, 16384))
FULL = dict(config=Config(think_vocab=2048), small=Config(6, 6, 384, think_vocab=2048), batches=(1, 16, 64), P=64, S=64,
            rounds=3, tokens=1024, updates=3, branches=(2, 64, 8), cups=40, dials=DIALS, thoughts=(8, 32))
QUICK = dict(config=Config(2, 2, 32, 128, 400, 50), small=Config(1, 2, 32, 128, 400, 50), batches=(2,), P=8, S=8, rounds=1,
             tokens=64, updates=2, branches=(2, 6, 2), cups=3, dials=dict(prompts=(1, 2)), thoughts=(2,))


def now() -> float:
    """Seconds; of one thread on a CPU its CPU seconds, so that others who take turns on the same core do not count."""
    if GPU:
        torch.cuda.synchronize()
    return time.process_time() if torch.get_num_threads() == 1 and not GPU else time.perf_counter()


def seconds(task: Callable) -> float:
    start = now()
    task()
    return now() - start


def wall(task: Callable) -> float:
    """Seconds on the wall, where other processes do the work."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def interleave(arms: dict[str, Callable], rounds: int, warm: bool = True, clock: Callable = seconds) -> dict[str, list[float]]:
    """Seconds of each arm, in turn: A B A B, after one warm-up."""
    runs = [{name: clock(task) for name, task in arms.items()}
            for _ in tqdm(range(rounds + warm), desc=next(iter(arms)), leave=False)]
    return {name: [run[name] for run in runs[warm:]] for name in arms}


def fresh(task: Callable, *args):
    """Its result from a new process, whose peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *args).result()


def memory(key: str) -> float:
    """MiB of this process: VmRSS, now, or VmHWM, at the most so far (ru_maxrss would be the parent's, where that is larger).
    On a GPU what torch has of it. nan where neither can be asked."""
    if GPU:
        return {"VmRSS": torch.cuda.memory_allocated, "VmHWM": torch.cuda.max_memory_allocated}[key]() / 2 ** 20
    status = Path("/proc/self/status")
    found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith(key)] if status.exists() else []
    return int(found[0]) / 1024 if found else float("nan")


def have(package: str) -> bool:
    there = importlib.util.find_spec(package) is not None
    if not there:
        print(f"  ({package} is not installed, its arm is skipped: pip install -r tests/requirements-bench.txt)")
    return there


def show(title: str, times: dict[str, list[float]], limit: float = 0.0, peaks: dict[str, float] | None = None) -> dict:
    """Print one comparison with ours, the first arm; what is returned goes to bench.json."""
    print(f"  {title:<66} {'seconds':>9} {'x ours':>7} {'limit':>6} {'MiB':>6}")
    ours, table = next(iter(times.values())), {}
    for arm, spent in times.items():
        row = {"seconds": median(spent), "all": spent, "x_ours": median(b / a for a, b in zip(ours, spent))}
        table[arm] = row = row | {"limit": limit / row["seconds"], "peak_mib": peaks[arm] if peaks else 0.0}
        share, peak = f"{row['limit']:.0%}" if limit else "", f"{row['peak_mib']:.0f}" if peaks else ""
        print(f"    {arm:<64} {row['seconds']:9.4f} {row['x_ours']:7.2f} {share:>6} {peak:>6}")
    return {"title": title, "arms": table}


def roofline(config: Config) -> tuple[float, float]:
    """-> FLOP/s of the best large product, bytes/s of a pass over the unembedding: the best of ten."""
    a, b, x = (torch.randn(1024, n, device=DEVICE).T for n in (1024, 1024, config.n_embd))
    rows = torch.randn(config.vocab_size, config.n_embd, device=DEVICE)
    rates = [(2 * 1024 ** 3 / seconds(lambda: a @ b), 2 * rows.numel() * 1024 / seconds(lambda: unembed(x.T, rows)),
              4 * rows.numel() / seconds(rows.sum)) for _ in range(10)]
    gemm, wide, stream = (max(rate) for rate in zip(*rates))
    return max(gemm, wide), stream


def least(model: GPT, steps: list[tuple[int, int]], size: dict) -> float:
    """Seconds that forwards take at the least. steps: for each, its rows, and how many of them get text logits."""
    body, vocab = (sum(p.numel() for p in m.parameters()) for m in (model.h, model.wte))
    return sum(max(2 * (rows * body + heads * vocab) / size["peak"], 4 * (body + (heads > 0) * vocab) / size["stream"])
               for rows, heads in steps)


def hugging_face(model: GPT):
    """The same weights in transformers' class, text rows alone."""
    from transformers import GPT2Config, GPT2LMHeadModel
    c = model.config
    shape = dict(vocab_size=c.vocab_size, n_positions=c.n_ctx, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head)
    peer = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=None))
    peer.transformer.load_state_dict({k: v.T if k.endswith(TRANSPOSED) else v for k, v in model.state_dict().items()
                                      if not k.startswith("think")})
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
        return ctranslate2.Generator(folder, device=DEVICE, compute_type="float32", intra_threads=torch.get_num_threads())


def rollouts(size: dict) -> list[dict]:
    """P + S tokens: ours with text alone, what others generate, and ours with free thoughts."""
    model, tables, (P, S) = GPT(size["config"]).to(DEVICE), [], (size["P"], size["S"])
    V, hf = model.config.vocab_size, hugging_face(model) if have("transformers") else None
    ct = ctranslate(hf, V) if hf is not None and have("ctranslate2") else None
    for B in size["batches"]:
        text, u = torch.randint(V, (B, P), device=DEVICE), torch.rand(2 * S, B, 2, device=DEVICE)
        words = [[str(i) for i in row] for row in text.tolist()]
        arms = {"ours, text alone": lambda: rollout(model, text, P, S, Rules("never"), u)}
        if hf is not None:
            arms["Hugging Face generate, dynamic cache"] = lambda: hf.generate(
                text, attention_mask=torch.ones_like(text), max_new_tokens=S, do_sample=True, top_k=0, pad_token_id=0)
        if ct is not None:
            arms["CTranslate2, float32"] = lambda: ct.generate_batch(
                words, max_length=S, min_length=S, sampling_topk=0, include_prompt_in_result=False)
        rules = Rules("free", max_thoughts=1, budget=S // 2)
        arms[f"ours, free thoughts, {S // 2} more places"] = lambda: rollout(model, text, P, S, rules, u)
        limit = least(model, [(B * P, B)] + [(B, B)] * (S - 1), size)
        tables.append(show(f"B = {B}, {P} + {S} tokens", interleave(arms, size["rounds"]), limit))
    return tables


def sampler(size: dict) -> list[dict]:
    """One id a row, from a softmax."""
    logits = torch.randn(16, size["config"].vocab_size + size["config"].think_vocab, device=DEVICE)
    u = torch.rand(16, device=DEVICE)
    arms = {"ours: two-level inverse CDF": lambda: draw(logits, u, 1.0),
            "torch.multinomial": lambda: torch.multinomial(logits.softmax(-1), 1),
            "Gumbel, by exponential_": lambda: (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)}
    return [show(f"a draw from {list(logits.shape)}", interleave(arms, 10 * size["rounds"]))]


def loss_arm(arm: str, config: Config, n: int, threads: int) -> tuple[float, float]:
    """-> seconds forward + backward, MiB at the peak above states and weights."""
    torch.set_num_threads(threads)
    N = config.think_vocab if arm == "ours" else 0  # the peer has all rows in one matrix, which suits it best
    V, C = config.vocab_size + config.think_vocab - N, config.n_embd
    h, wte, think = (torch.empty(rows, C, device=DEVICE).normal_(std=0.02).requires_grad_() for rows in (n, V, N))
    offset, y = torch.zeros((), device=DEVICE, requires_grad=True), torch.randint(V, (n,), device=DEVICE)

    def entropy(logits, V, y):
        return F.cross_entropy(logits, y, reduction="sum"), 0

    def task() -> None:
        h.grad = wte.grad = think.grad = offset.grad = None
        total = _Pieces.apply(h, wte, think, offset, entropy, [y])[0] if arm == "ours" else entropy(h @ wte.T, V, y)[0]
        total.backward()

    before = memory("VmRSS")
    times = [seconds(task) for _ in range(3)]
    return median(times[1:]), memory("VmHWM") - before


def in_turn(title: str, arms: dict[str, tuple], rounds: int, limit: float = 0.0) -> dict:
    """Arms (task, *arguments) that return seconds and peak MiB, each time in a new process: A B A B."""
    runs = [{name: fresh(*task) for name, task in arms.items()} for _ in tqdm(range(rounds), desc=title, leave=False)]
    times, peaks = ({name: [run[name][i] for run in runs] for name in arms} for i in (0, 1))
    return show(title, times, limit, {name: median(x) for name, x in peaks.items()})


def loss(size: dict) -> list[dict]:
    """Unembedding and log-probs over all rows, forward + backward."""
    config, n = size["config"], size["tokens"]
    rows = config.vocab_size + config.think_vocab
    arms = {"ours: in pieces, gradients formed in the forward": "ours", "F.cross_entropy": "plain"}
    return [in_turn(f"log-probs [{n}, {rows}] and their gradient (MiB above inputs)",
                    {name: (loss_arm, arm, config, n, torch.get_num_threads()) for name, arm in arms.items()}, size["rounds"],
                    3 * 2 * n * rows * config.n_embd / size["peak"])]


class Noise:
    """Random ids, where train.py expects data."""
    def __init__(self, V: int):
        self.V = V

    def batch(self, B: int, S: int, *key) -> Batch:
        return Batch(np.random.default_rng(0).integers(self.V, size=(B, S)))


class Clock:
    """Stands in for train.py's journal, and around the parts of its loop."""
    PARTS = ("contexts", "rollout", "teacher_states", "slot_rewards", "advantages", "gradient_pass")
    evals, out, saved = [{"nats_without_thoughts": 0.0}], Path("."), float("inf")

    def __init__(self):
        self.steps, self.parts, self.inside = [], dict.fromkeys(self.PARTS, 0.0), False

    def write(self, *line) -> None:
        if not self.steps:  # the first step is a warm-up, in its parts as well
            self.parts = dict.fromkeys(self.PARTS, 0.0)
        self.steps.append(now())

    def measure(self, *args) -> None:
        pass

    def close(self, *args) -> None:
        pass

    def around(self, name: str) -> Callable:
        task = getattr(train, name)

        def timed(*args, **kwargs):
            if self.inside:  # where a student writes its own text, `contexts` has a rollout inside
                return task(*args, **kwargs)
            self.inside, start = True, now()
            out = task(*args, **kwargs)
            self.inside, self.parts[name] = False, self.parts[name] + now() - start
            return out
        return timed


def train_loop(a: dict, saved: dict | None, *parts) -> tuple[list[float], dict[str, float]]:
    """train.py's own loop without evaluations and files -> seconds of each step but the first, share of each part."""
    clock = Clock()
    timed = {name: clock.around(name) for name in Clock.PARTS}
    with patch.multiple(train, Journal=lambda *args: clock, save=lambda *args: None, **timed), \
            contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.train(a, saved, Path("."), *parts)
    whole = clock.steps[-1] - clock.steps[0]
    shares = {name: spent / whole for name, spent in clock.parts.items()}
    return np.diff(clock.steps).tolist(), shares | {"the rest (the optimizer)": 1 - sum(shares.values())}


def update_arm(flags: list, config: Config, threads: int) -> tuple[float, float, float]:
    """An update of train.py with these flags on noise -> seconds, MiB of the whole process at the peak, and seconds of its
    gradient pass alone."""
    torch.set_num_threads(threads)
    base = replace(config, think_vocab=0)
    with patch.multiple(train, load=lambda name: GPT(base), open_data=lambda *args: Noise(base.vocab_size)), \
            contextlib.redirect_stdout(io.StringIO()):
        a = resolve(parse(["--data", "webtext", "--model", "gpt2", *map(str, flags)]))
        parts = train.setup(a, None)
    times, shares = train_loop(a, None, *parts)
    return median(times), memory("VmHWM"), median(times) * shares["gradient_pass"]


def trl_arm(config: Config, B: int, G: int, P: int, S: int, steps: int, threads: int) -> tuple[float, float]:
    """The same with TRL: leave-one-out over G samples, no KL term, a teacher's mean log-prob as reward."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer
    torch.set_num_threads(threads)
    V, stamps, (student, teacher) = config.vocab_size, [], (hugging_face(GPT(config)) for _ in range(2))
    words = Tokenizer(models.WordLevel({str(i): i for i in range(V)}, unk_token="0"))  # ids written out
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0")

    @torch.no_grad()
    def reward(prompts, completion_ids, **_) -> list[float]:
        ids = torch.tensor([[int(w) for w in p.split()] + c for p, c in zip(prompts, completion_ids)], device=DEVICE)
        logits = teacher(ids[:, :-1], logits_to_keep=S).logits  # [B * G, S, V]
        return (-F.cross_entropy(logits.transpose(1, 2), ids[:, P:], reduction="none")).mean(1).tolist()

    class Stamps(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            stamps.append(-now())

        def on_step_end(self, *args, **kwargs):
            stamps[-1] += now()

    prompts = Dataset.from_dict({"prompt": [" ".join(map(str, row)) for row in torch.randint(1, V, (B * steps, P)).tolist()]})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = RLOOConfig(folder, per_device_train_batch_size=B * G, num_generations=G, max_completion_length=S, beta=0.0,
                              max_steps=steps, report_to="none", save_strategy="no", use_cpu=not GPU, bf16=False,
                              gradient_checkpointing=False, disable_tqdm=True, generation_kwargs={"min_new_tokens": S})
        RLOOTrainer(student, reward, settings, train_dataset=prompts, processing_class=words, callbacks=[Stamps()]).train()
    return median(stamps[1:]), memory("VmHWM")


def updates(size: dict) -> list[dict]:
    """One step on 2 prompts x 4 samples, with a teacher."""
    config, P, S, steps, threads = size["config"], size["P"], size["S"], size["updates"], torch.get_num_threads()
    flags = ["--prompts", 2, "--samples", 4, "--prompt_tokens", P, "--new_tokens", S, "--steps", steps]
    same = ["--thoughts", "none", "--siblings", "free", "--text_grad", "sampled", "--beta", 0, "--gamma", 1]
    thoughts = ["--think_vocab", config.think_vocab]
    arms = {"ours, as TRL's: text alone, sampled log-prob": (update_arm, flags + same, config, threads)}
    arms |= {"TRL's RLOOTrainer": (trl_arm, config, 2, 4, P, S, steps, threads)} if have("trl") else {}
    arms |= {"ours, the default: free thoughts, exact KL": (update_arm, flags + thoughts, config, threads)}
    return [in_turn(f"an update, 2 x 4 samples, {P} + {S} tokens (MiB of the process)", arms, max(1, size["rounds"] - 1))]


def next_token(size: dict) -> list[dict]:
    """s branches of k thoughts for a text of s tokens: packed in one row, and one by one."""
    (B, s, k), rounds = size["branches"], max(1, size["rounds"] - 1)
    model, rules = GPT(size["config"]).to(DEVICE), Rules("free", k, k, persist=False)
    text, u = torch.randint(model.config.vocab_size, (B, s + 1), device=DEVICE), torch.rand(k, B, s, 2, device=DEVICE)
    ours, theirs, done = "ours: packed", "a loop over prefixes, each with its cache", {}

    def sample() -> None:
        done[ours] = [rollout(model, text, 1, s, rules, u.flatten(1, 2))]

    def sample_loop() -> None:
        done[theirs] = [rollout(model, text[:, :i + 1], i, 1, rules, u[:, :, i - 1]) for i in range(1, s + 1)]

    def gradient(name: str) -> None:
        model.zero_grad()
        for ro in done[name]:
            (states(model, ro, rules) * torch.linspace(-1, 1, model.config.n_embd, device=DEVICE)).sum().backward()

    title = f"next_token, {B} texts x {s} branches x {k} thoughts: "
    limit = least(model, [(B * (s + 1), B * s)] + [(B * s, B * s)] * (k - 1) + [(B * s, 0)], size)
    tables = [show(title + "rollouts", interleave({ours: sample, theirs: sample_loop}, rounds, False), limit)]
    arms = {name: functools.partial(gradient, name) for name in done}
    limit = 3 * least(model, [(B * (s + 1 + s * k), 0)], size)
    return tables + [show(title + "gradient", interleave(arms, rounds, False), limit)]


def continuous(size: dict) -> list[dict]:
    """k thoughts, one after each of the first k tokens: as ids, sampled and then read in one forward with gradient; and as
    vectors, where the gradient passes through k thoughts one after the other."""
    tables, P, S = [], size["P"], size["S"]
    for k in size["thoughts"]:
        flags = ["--approach", "stream", "--think", "forced", "--prompts", 2, "--samples", 4, "--prompt_tokens", P,
                 "--new_tokens", S, "--budget", k, "--steps", size["updates"]]
        kinds = {"ids": ["--think_vocab", size["config"].think_vocab], "vectors": ["--thoughts", "continuous"]}
        runs = {kind: fresh(update_arm, flags + more, size["config"], torch.get_num_threads()) for kind, more in kinds.items()}
        title = f"8 texts of {P} + {S} tokens, {k} thoughts each"
        tables.append(show(f"an update, {title} (MiB of the process)", {kind: [run[0]] for kind, run in runs.items()},
                           peaks={kind: run[1] for kind, run in runs.items()}))
        tables.append(show("its gradient pass alone", {kind: [run[2]] for kind, run in runs.items()}))
    return tables


def cups(size: dict) -> list[dict]:
    """What a machine without a GPU runs: updates in the first stage and in the last, and where the time goes."""
    tables = []
    for approach, stage in (("teacher", 1), ("teacher", 10), ("stream", 1), ("stream", 10)):
        with contextlib.redirect_stdout(io.StringIO()):
            a = resolve(parse(["--approach", approach])) | {"out": ".", "steps": size["cups"]}
            model, *others = train.setup(a, None)
        state = {"step": 0, "stage": stage, "accuracy": -1e9, "in_stage": 0, "dead": 0}  # so it never leaves this stage
        saved = {"optimizer": train.make_optimizer(a, model).state_dict(), "state": state}
        times, shares = train_loop(a, saved, model, *others)
        tables.append(show(f"cups, rounds of {stage}: {1 / median(times):.1f} updates a second", {approach: times}))
        print("      " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005))
        tables[-1]["shares"] = shares
    return tables


def scale(size: dict) -> list[dict]:
    """Time and memory of an update, one dial turned at a time: figures/bench_scale.png."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    base = {"prompts": 2, "new_tokens": size["S"] // 2, "max_thoughts": 1, "think_vocab": size["small"].think_vocab}
    points = [(name, x, base | {name: x}, size["small"]) for name, values in size["dials"].items() for x in values]
    points += [("parameters", sum(p.numel() for p in GPT(c).parameters()), base, c) for c in (size["small"], size["config"])]
    found, lines = {}, {}
    for name, x, dials, config in tqdm(points, desc="scale", leave=False):
        flags = [word for dial in dials.items() for word in (f"--{dial[0]}", dial[1])]
        flags += ["--prompt_tokens", size["S"] // 2, "--budget", dials["new_tokens"] * dials["max_thoughts"] // 2, "--steps", 3]
        found.setdefault(name, []).append((x, *fresh(update_arm, flags, config, torch.get_num_threads())[:2]))
    figure, axes = plt.subplots(1, len(found), figsize=(3.4 * len(found), 3.2))
    for axis, (name, line) in zip(axes, found.items()):
        print(f"  {name:<13}" + "   ".join(f"{x:.4g}: {spent:.2f} s, {peak:.0f} MiB" for x, spent, peak in line))
        x, spent, peak = zip(*line)
        lines[name] = {unit: straight(x, y) for unit, y in (("s", spent), ("MiB", peak))}
        print(" " * 15 + ", ".join(f"{once:.4g} + {each:.3g} {unit} each (at most {off:.0%} off)"
                                   for unit, (once, each, off) in lines[name].items()))
        axis.plot(x, spent, "o-")
        axis.set(title=name, xscale="log", ylim=(0, None), xticks=x, xticklabels=[f"{v:.3g}" for v in x])
        axis.minorticks_off()
        axis.twinx().plot(x, peak, "s:", color="tab:orange")
    axes[0].set_ylabel("seconds an update\n(dotted, right: MiB at the peak)")
    figure.tight_layout()
    Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/bench_scale.png", dpi=110)
    return [{"title": name, "points": line, "line": lines[name]} for name, line in found.items()]


def straight(x, y) -> tuple[float, float, float]:
    """The line that points lie on, if they do: what there is at 0, what each unit adds, and how far off the worst of them is, as
    a share of itself."""
    each, once = np.polyfit(x, y, 1)
    return float(once), float(each), float(max(abs(once + each * np.array(x) - y) / np.array(y)))


def compiled_twin(model: GPT):
    """On a CPU as train.py has it. On a GPU as CUDA graphs, which replay on fixed addresses: caches are kept from rollout to
    rollout (what is left in them is masked), and states are copied out before the next replay overwrites them."""
    if not GPU:
        return torch.compile(model)
    twin, step = copy.copy(model), torch.compile(model, mode="reduce-overhead")

    @functools.cache
    def kept(R: int, T: int) -> list[torch.Tensor]:
        cache = model.new_cache(R, T)
        for layer in cache:
            torch._dynamo.mark_static_address(layer)
        return cache

    twin.forward, twin.new_cache = lambda *args: step(*args).clone(), kept
    return twin


def compiled(size: dict) -> list[dict]:
    """The rollout with torch.compile: what it saves, what the first one costs, and does it go on compiling?"""
    B, P, S = size["batches"][-1], size["P"], size["S"]
    model = GPT(size["config"]).to(DEVICE)
    text, u, ids = torch.randint(model.config.vocab_size, (B, P), device=DEVICE), torch.rand(S, B, 2, device=DEVICE), {}
    fast, graphs = compiled_twin(model), lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def run(name: str, sampler) -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=GPU):
            ids[name] = rollout(sampler, text, P, S, Rules("never"), u, temperature=0.0).ids

    torch._dynamo.utils.counters.clear()
    try:
        first = wall(lambda: run("compiled", fast))
    except Exception as e:  # whatever torch meets where there is no C++ compiler
        print(f"  torch.compile does not run here: {str(e).splitlines()[0]}")
        return []
    early, arms = graphs(), {"ours, eager": lambda: run("eager", model), "ours, torch.compile": lambda: run("compiled", fast)}
    if GPU and have("transformers"):
        hf = hugging_face(model).bfloat16()
        arms["Hugging Face generate, static cache"] = lambda: hf.generate(
            text, attention_mask=torch.ones_like(text), max_new_tokens=S, do_sample=False, pad_token_id=0,
            cache_implementation="static")
    table = show(f"rollout, B = {B}, {P} + {S}{', bfloat16' if GPU else ''}", interleave(arms, size["rounds"]))
    same = (ids["eager"] == ids["compiled"]).float().mean().item()
    print(f"    the first takes {first:.1f} s; {early} graphs after it, {graphs()} at the end; greedy ids {same:.1%} equal")
    return [table | {"first": first, "graphs": [early, graphs()], "same_ids": same}]


def start(size: dict) -> list[dict]:
    """How long until something happens."""
    def command(*words: str) -> Callable:
        return lambda: subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)

    def first_step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            log, words = Path(folder) / "metrics.jsonl", [sys.executable, "train.py", "--think_vocab", "2048", "--out", folder]
            with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None and not (log.exists() and '"kind": "step"' in log.read_text()):
                    time.sleep(0.05)
                process.kill()

    arms = {"python train.py --help": command("train.py", "--help"), "python -c 'import torch'": command("-c", "import torch"),
            "python train.py --think_vocab 2048, until its first step is done": first_step}
    return [show("start", interleave(arms, size["rounds"], clock=wall))]


SECTIONS = {"rollout": rollouts, "sampler": sampler, "loss": loss, "update": updates, "next_token": next_token,
            "continuous": continuous, "cups": cups,
            "scale": scale, "compile": compiled, "start": start}


def main() -> None:
    p = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's (as torch would have it)")
    p.add_argument("--quick", action="store_true", help="tiny shapes: do all arms run? The numbers mean nothing")
    args = p.parse_args()
    if args.threads < 1:
        p.error(f"--threads must be at least 1, not {args.threads}")
    torch.set_num_threads(args.threads)
    out, size = Path("bench.json"), QUICK if args.quick else FULL
    peak, stream = roofline(size["config"])
    device = torch.cuda.get_device_name() if GPU else f"CPU, {os.cpu_count()} cores"
    print(f"{device}, {args.threads} threads, torch {torch.__version__}: {peak / 1e9:.0f} GFLOP/s, {stream / 1e9:.1f} GB/s"
          + ("" if GPU else "; on a GPU: unmeasured, there is none"))
    for name in args.only:
        print(name)
        torch.manual_seed(0)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # how many others ran, on a shared machine
        tables = SECTIONS[name](size | {"peak": peak, "stream": stream})
        results = json.loads(out.read_text()) if out.exists() else {}
        key = f"{name}, threads {args.threads}" + ", quick" * args.quick
        results[key] = {"device": device, "threads": args.threads, "torch": torch.__version__, "load": load,
                        "quick": args.quick, "gflops": peak / 1e9, "gb_per_second": stream / 1e9, "tables": tables}
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
