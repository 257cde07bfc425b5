"""How fast it is, beside what people would use instead, and how far from what the machine could do.

    python bench.py                       # one table, bench.json, figures/bench_scale.png
    python bench.py --only rollout loss   # some sections; bench.json keeps what it has of the others

Arms that are compared run in turn (A B A B): a shared machine drifts by a quarter within minutes, and then both feel it.
Shown are medians; `x ours` is the median of the ratios pair by pair, over 1 where ours is faster (or smaller). `limit` is the
share of the roofline: the time that the same matrix products would take at this machine's own peak (its GEMM, or one
streaming pass over the weights, whichever takes longer), measured in the same run. Attention and sampling are not in it.

Weights are random, as speed does not depend on them. Left out on purpose: int8 and other arithmetic (another policy than
the one that is trained), several GPUs, served models. Knows all other files. Peers: tests/requirements-bench.txt.
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
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import train
from data import Batch
from model import GPT, TRANSPOSED, Config
from reward import _Pieces
from rollout import Rules, draw, rollout, states

ROOT = Path(__file__).resolve().parent
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
FULL = dict(config=Config(think_vocab=2048), batches=(1, 16, 64), P=64, S=64, rounds=3, loss_rows=1024, updates=3,
            branch=(2, 64, 8), cups_steps=60, scale=Config(6, 6, 384, think_vocab=2048),
            sizes=(Config(4, 4, 256, think_vocab=2048), Config(12, 12, 768, think_vocab=2048)))
QUICK = dict(config=Config(2, 2, 32, 128, 400, 50), batches=(2,), P=8, S=8, rounds=2, loss_rows=64, updates=2,
             branch=(2, 6, 2), cups_steps=3, scale=Config(1, 2, 32, 128, 400, 50), sizes=(Config(2, 2, 32, 128, 400, 50),))


def now() -> float:
    """Seconds; of one thread on a CPU its own CPU seconds, so that neighbours who take turns on a core do not count."""
    if GPU:
        torch.cuda.synchronize()
    return time.process_time() if torch.get_num_threads() == 1 and not GPU else time.perf_counter()


def seconds(task: Callable) -> float:
    start = now()
    task()
    return now() - start


def interleave(arms: dict[str, Callable], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each arm, in turn: A B A B."""
    times = {name: [] for name in arms}
    for i in tqdm(range(-warm, rounds), desc=" / ".join(arms), leave=False):
        for name, task in arms.items():
            spent = seconds(task)
            if i >= 0:
                times[name].append(spent)
    return times


def fresh(task: Callable, *args):
    """Its result from a new process, whose peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *args).result()


def memory(key: str) -> float:
    """MiB of this process, VmRSS (now) or VmHWM (at most so far; not ru_maxrss, which a child inherits); nan off Linux."""
    status = Path("/proc/self/status")
    found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith(key)] if status.exists() else []
    return int(found[0]) / 1024 if found else float("nan")


def have(package: str) -> bool:
    there = importlib.util.find_spec(package) is not None
    if not there:
        print(f"  ({package} is not installed, so its arm is skipped: pip install -r tests/requirements-bench.txt)")
    return there


def show(title: str, times: dict[str, list[float]], limit: float | None = None, peaks: dict[str, float] | None = None) -> dict:
    """Print one comparison; what is returned goes to bench.json. The first arm is ours."""
    print(f"  {title:<58} {'seconds':>9} {'x ours':>7} {'limit':>6} {'MiB':>6}")
    ours, table = next(iter(times.values())), {}
    for arm, spent in times.items():
        row = {"seconds": median(spent), "all": spent, "x_ours": median(b / a for a, b in zip(ours, spent))}
        row["limit"] = limit / row["seconds"] if limit else None
        row["peak_mib"] = peaks[arm] if peaks else None
        table[arm] = row
        share, peak = (f"{value:{form}}" if value else "" for value, form in ((row["limit"], ".0%"), (row["peak_mib"], ".0f")))
        print(f"    {arm:<56} {row['seconds']:9.4f} {row['x_ours']:7.2f} {share:>6} {peak:>6}")
    return {"title": title, "arms": table}


def roofline(model: GPT) -> tuple[float, float]:
    """-> FLOP/s of a large product, bytes/s of a pass over the weights: the best of 20, since this is what the machine can do."""
    a, b = torch.randn(2, 1024, 1024, device=DEVICE)
    weights = list(model.parameters())
    size = sum(w.numel() * w.element_size() for w in weights)
    with torch.no_grad():
        return (2 * 1024 ** 3 / min(seconds(lambda: a @ b) for _ in range(20)),
                size / min(seconds(lambda: [w.sum() for w in weights]) for _ in range(20)))


def least(model: GPT, steps: list[tuple[int, int]], peak: float, stream: float) -> float:
    """Seconds that forwards take at the least. steps: for each, its rows, and how many of them get text logits."""
    body, vocab = (sum(p.numel() for p in m.parameters()) for m in (model.h, model.wte))
    return sum(max(2 * (rows * body + heads * vocab) / peak, 4 * (body + (heads > 0) * vocab) / stream) for rows, heads in steps)


def hugging_face(model: GPT):
    """The same weights in transformers' class, text rows alone."""
    from transformers import GPT2Config, GPT2LMHeadModel
    c = model.config
    peer = GPT2LMHeadModel(GPT2Config(vocab_size=c.vocab_size, n_positions=c.n_ctx, n_embd=c.n_embd, n_layer=c.n_layer,
                                      n_head=c.n_head, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0,
                                      eos_token_id=None))
    peer.transformer.load_state_dict({k: v.T if k.endswith(TRANSPOSED) else v for k, v in model.state_dict().items()
                                      if not k.startswith("think")})
    return peer.eval().to(DEVICE)


def ctranslate(peer, V: int):
    """transformers' model as CTranslate2's, in float32; ids are written as words, since it speaks words."""
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
    """P + S tokens: ours with free thoughts, ours with text alone, and what others generate."""
    torch.manual_seed(0)
    model, tables, (P, S) = GPT(size["config"]).to(DEVICE), [], (size["P"], size["S"])
    torch.nn.init.normal_(model.think, std=0.02)
    peak, stream = roofline(model)
    print(f"  machine: {peak / 1e9:.1f} GFLOP/s, {stream / 1e9:.1f} GB/s")
    V, hf = model.config.vocab_size, hugging_face(model) if have("transformers") else None
    ct = ctranslate(hf, V) if hf is not None and have("ctranslate2") else None
    for B in size["batches"]:
        text, u = torch.randint(V, (B, P), device=DEVICE), torch.rand(2 * S, B, 2, device=DEVICE)
        generate = functools.partial(hf.generate, text, attention_mask=torch.ones_like(text), max_new_tokens=S, do_sample=True,
                                     top_k=0, pad_token_id=0) if hf is not None else None
        arms = {"ours, text alone": lambda: rollout(model, text, P, S, Rules("never"), u)}
        if hf is not None:
            arms["Hugging Face generate, dynamic cache"] = generate
        if ct is not None:
            words = [[str(i) for i in row] for row in text.tolist()]
            arms["CTranslate2, float32"] = lambda: ct.generate_batch(
                words, max_length=S, min_length=S, sampling_topk=0, include_prompt_in_result=False)
        thoughts = Rules("free", max_thoughts=1, budget=S // 2)
        arms[f"ours, free thoughts (up to {S // 2} a row beside the text)"] = lambda: rollout(model, text, P, S, thoughts, u)
        limit = least(model, [(B * P, B)] + [(B, B)] * (S - 1), peak, stream)
        tables.append(show(f"B = {B}, {P} + {S} tokens, {B * S} new", interleave(arms, size["rounds"]), limit))
    return tables


def sampler(size: dict) -> list[dict]:
    """One id a row from [16, V + N] logits."""
    logits, u = torch.randn(16, sum(size["config"].__dict__[k] for k in ("vocab_size", "think_vocab")), device=DEVICE), \
        torch.rand(16, device=DEVICE)
    arms = {"ours: two-level inverse CDF": lambda: draw(logits, u, 1.0),
            "softmax + torch.multinomial": lambda: torch.multinomial(logits.softmax(-1), 1),
            "softmax + Gumbel by exponential_": lambda: (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)}
    return [show(f"draw from {list(logits.shape)}", interleave(arms, 10 * size["rounds"]))]


def loss_arm(arm: str, config: Config, n: int, threads: int) -> tuple[float, float]:
    """-> seconds forward + backward, MiB at the peak above states and weights."""
    torch.set_num_threads(threads)
    N = config.think_vocab if arm == "ours" else 0  # the peer has all rows in one matrix, which suits it best
    V, C = config.vocab_size + config.think_vocab - N, config.n_embd
    h, wte, think = (torch.empty(rows, C).normal_(std=0.02).requires_grad_() for rows in (n, V, N))
    offset, y = torch.zeros((), requires_grad=True), torch.randint(V, (n,))

    def task() -> None:
        for x in (h, wte, think, offset):
            x.grad = None
        if arm == "ours":
            piece = lambda logits, V, y: (F.cross_entropy(logits, y, reduction="sum"), 0)  # noqa: E731
            _Pieces.apply(h, wte, think, offset, piece, [y])[0].backward()
        else:
            F.cross_entropy(h @ wte.T, y, reduction="sum").backward()

    before = memory("VmRSS")
    times = [seconds(task) for _ in range(3)]
    return median(times[1:]), memory("VmHWM") - before


def in_turn(title: str, arms: dict[str, tuple], rounds: int) -> dict:
    """Arms (task, *arguments) that return (seconds, peak MiB), each time in a new process: A B A B."""
    runs = [{name: fresh(*task) for name, task in arms.items()} for _ in tqdm(range(rounds), desc=title, leave=False)]
    times, peaks = ({name: [run[name][i] for run in runs] for name in arms} for i in (0, 1))
    return show(title, times, peaks={name: median(x) for name, x in peaks.items()})


def loss(size: dict) -> list[dict]:
    """Unembedding and log-probs over the whole vocabulary, forward + backward."""
    config, n = size["config"], size["loss_rows"]
    arms = {name: (loss_arm, arm, config, n, torch.get_num_threads())
            for name, arm in (("ours: in pieces, gradients formed in the forward", "ours"), ("F.cross_entropy", "plain"))}
    return [in_turn(f"[{n}, {config.vocab_size + config.think_vocab}] log-probs and gradient (peak above inputs)", arms, size["rounds"])]


class Noise:
    """Text of random ids, where train.py expects data."""
    def __init__(self, V: int):
        self.V = V

    def batch(self, B: int, S: int, *key) -> Batch:
        return Batch(np.random.default_rng(0).integers(self.V, size=(B, S)))


class Clock:
    """Stands in for train.py's journal and around the parts of its loop: the very loop, without evaluations and files."""
    evals, t0 = [{}], 0

    def __init__(self, *args):
        self.steps, self.parts, self.inside = [now()], {}, False

    def write(self, *line) -> None:
        self.steps.append(now())

    def measure(self, *args) -> None:
        pass

    def around(self, name: str) -> Callable:
        task = getattr(train, name)

        def timed(*args, **kwargs):
            if self.inside:  # own_text, a part of contexts, has a rollout of its own
                return task(*args, **kwargs)
            self.inside, start = True, now()
            out = task(*args, **kwargs)
            self.inside = False
            self.parts[name] = self.parts.get(name, 0) + now() - start
            return out
        return timed


PARTS = ("contexts", "rollout", "teacher_states", "slot_rewards", "advantages", "gradient_pass")


def train_loop(a: dict, saved: dict | None, model: GPT, teacher: GPT | None, data, rules: Rules) -> tuple[list[float], dict]:
    """-> seconds of each step of train.py's loop but the first, share of each part."""
    clock = Clock()
    quiet = {name: lambda *args: None for name in ("save", "draw_curves", "report")}
    with patch.multiple(train, Journal=lambda *args: clock, **quiet, **{name: clock.around(name) for name in PARTS}), \
            contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.train(a, saved, Path("."), model, teacher, data, rules)
    whole = clock.steps[-1] - clock.steps[0]
    shares = {name: spent / whole for name, spent in clock.parts.items()}
    return np.diff(clock.steps)[1:].tolist(), shares | {"the rest (mostly the optimizer)": 1 - sum(shares.values())}


def update_arm(flags: list, config: Config, threads: int) -> tuple[float, float, dict]:
    """-> seconds of an update on noise, MiB of the whole process at the peak, share of each part. Flags are train.py's."""
    torch.set_num_threads(threads)
    bare = replace(config, think_vocab=0)
    with patch.multiple(train, load=lambda name: GPT(bare), open_data=lambda *args: Noise(config.vocab_size)), \
            contextlib.redirect_stdout(io.StringIO()):
        a = train.resolve(train.parse(["--data", "webtext", "--model", "gpt2", *map(str, flags)]))
        parts = train.setup(a, None)
    times, shares = train_loop(a | {"out": "."}, None, *parts)
    return median(times), torch.cuda.max_memory_allocated() / 2 ** 20 if GPU else memory("VmHWM"), shares


def trl_arm(config: Config, B: int, G: int, P: int, S: int, steps: int, threads: int) -> tuple[float, float]:
    """The same with TRL: RLOO without a KL term, rewarded by a teacher's mean log-prob."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer
    torch.set_num_threads(threads)
    V, stamps = config.vocab_size, []
    student, teacher = (hugging_face(GPT(config)) for _ in range(2))
    words = Tokenizer(models.WordLevel({str(i): i for i in range(V)}, unk_token="0"))  # ids written as words
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0")

    @torch.no_grad()
    def reward(prompts, completion_ids, **_) -> list[float]:
        ids = torch.tensor([[int(w) for w in p.split()] + c for p, c in zip(prompts, completion_ids)], device=DEVICE)
        logits = teacher(ids[:, :-1], logits_to_keep=S).logits
        return (-F.cross_entropy(logits.flatten(0, 1), ids[:, P:].flatten(), reduction="none")).view(len(ids), S).mean(1).tolist()

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
        RLOOTrainer(student, reward, settings, train_dataset=prompts, processing_class=tokenizer, callbacks=[Stamps()]).train()
    return median(stamps[1:]), torch.cuda.max_memory_allocated() / 2 ** 20 if GPU else memory("VmHWM")


def updates(size: dict) -> list[dict]:
    """One step of train.py on 2 prompts x 4 samples, with a teacher, beside TRL's."""
    config, P, S, steps, threads = size["config"], size["P"], size["S"], size["updates"], torch.get_num_threads()
    flags = ["--prompts", 2, "--samples", 4, "--prompt_tokens", P, "--new_tokens", S, "--steps", steps]
    plain = ["--thoughts", "none", "--siblings", "free", "--text_grad", "sampled", "--beta", 0, "--gamma", 1]
    arms = {"ours, text alone, plain REINFORCE": (update_arm, flags + plain, config, threads)}
    if have("trl"):
        arms["TRL's RLOOTrainer"] = (trl_arm, config, 2, 4, P, S, steps, threads)
    arms["ours, the default: free thoughts, exact KL"] = \
        (update_arm, flags + ["--think_vocab", config.think_vocab], config, threads)
    return [in_turn(f"an update, 2 prompts x 4 samples, {P} + {S} (peak of the process)", arms, max(1, size["rounds"] - 1))]


def next_token(size: dict) -> list[dict]:
    """s rollouts of k thoughts for a text of s tokens: packed in one row, and one by one."""
    B, s, k = size["branch"]
    model, rules = GPT(size["config"]).to(DEVICE), Rules("free", k, k, persist=False)
    text, u = torch.randint(model.config.vocab_size, (B, s + 1), device=DEVICE), torch.rand(k, B, s, 2, device=DEVICE)
    direction = torch.randn(model.config.n_embd, device=DEVICE)

    def packed() -> list:
        return [rollout(model, text, 1, s, rules, u.flatten(1, 2))]

    def one_by_one() -> list:
        return [rollout(model, text[:, :i + 1], i, 1, rules, u[:, :, i - 1]) for i in range(1, s + 1)]

    def gradient(pieces: list) -> None:
        model.zero_grad()
        for ro in pieces:
            (states(model, ro, rules) @ direction).sum().backward()

    several = {"ours: packed": packed(), "a loop over prefixes": one_by_one()}
    rounds = max(1, size["rounds"] - 1)
    return [show(f"next_token, {B} texts x {s} branches x {k} thoughts: rollouts",
                 interleave({"ours: packed": packed, "a loop over prefixes, each with a cache": one_by_one}, rounds, False)),
            show("... gradient pass (layers alone)",
                 interleave({name: functools.partial(gradient, pieces) for name, pieces in several.items()}, rounds, False))]


def cups(size: dict) -> list[dict]:
    """The two approaches that a laptop runs, in their first stage and their last."""
    tables = []
    for approach in ("teacher", "stream"):
        for stage in (1, 10):
            with contextlib.redirect_stdout(io.StringIO()):
                a = train.resolve(train.parse(["--approach", approach])) | {"out": ".", "steps": size["cups_steps"]}
                model, *others = train.setup(a, None)
            state = {"step": 0, "stage": stage, "accuracy": -1e9, "in_stage": 0, "dead": 0}  # it never leaves this stage
            saved = {"optimizer": train.make_optimizer(a, model).state_dict(), "state": state}
            times, shares = train_loop(a, saved, model, *others)
            tables.append(show(f"cups, {approach}, rounds of {stage}: {1 / median(times):.1f} updates a second", {"an update": times}))
            print("      " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
            tables[-1]["shares"] = shares
    return tables


def scale(size: dict) -> list[dict]:
    """Time and memory of an update, one dial turned at a time."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    base = {"prompts": 2, "new_tokens": size["S"] // 2, "max_thoughts": 1, "think_vocab": size["scale"].think_vocab}
    dials = {"prompts": (1, 2, 4, 8), "new_tokens": (16, 32, 64, 128), "max_thoughts": (1, 2, 4, 8), "think_vocab": (256, 2048, 16384)}
    if size is QUICK:
        dials = {name: (1, 2) for name in dials}
    points = [(name, x, base | {name: x}, size["scale"]) for name, values in dials.items() for x in values]
    points += [("parameters", sum(p.numel() for p in GPT(c).parameters()), base, c) for c in (*size["sizes"], size["scale"])]
    found = {}
    for name, x, dial, config in tqdm(points, desc="scale", leave=False):
        flags = [f for key, value in dial.items() for f in (f"--{key}", value)]
        flags += ["--prompt_tokens", size["S"] // 2, "--budget", dial["new_tokens"] * dial["max_thoughts"] // 2]
        spent, peak, _ = fresh(update_arm, [*flags, "--steps", 3], config, torch.get_num_threads())
        found.setdefault(name, []).append((x, spent, peak))
    figure, axes = plt.subplots(1, len(found), figsize=(16, 3.2))
    for axis, (name, line) in zip(axes, found.items()):
        x, spent, peak = zip(*sorted(line))
        axis.loglog(x, spent, "o-", label="seconds")
        axis.set(title=name, xticks=x, xticklabels=[f"{v:.3g}" for v in x])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.twinx().loglog(x, peak, "s:", color="tab:orange")
    axes[0].set_ylabel("seconds an update (line)\nMiB at the peak (orange, dotted)")
    figure.tight_layout()
    Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/bench_scale.png", dpi=110)
    plt.close(figure)
    for name, line in found.items():
        print(f"  {name:<13}" + "   ".join(f"{x:.4g}: {spent:.2f} s, {peak:.0f} MiB" for x, spent, peak in line))
    return [{"title": name, "points": line} for name, line in found.items()]


def compiled(size: dict) -> list[dict]:
    """The rollout with torch.compile: what it saves, what the first one costs, and whether it goes on compiling."""
    B, P, S = size["batches"][-2:][0], size["P"], size["S"]
    model = GPT(size["config"]).to(DEVICE)
    text, u = torch.randint(model.config.vocab_size, (B, P), device=DEVICE), torch.rand(S, B, 2, device=DEVICE)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fast = torch.compile(model)
    ids = {}

    def run(name: str, sampler) -> None:
        ids[name] = rollout(sampler, text, P, S, Rules("never"), u, temperature=0.0).ids

    try:
        first = seconds(lambda: run("compiled", fast))
    except Exception as e:  # whatever torch meets where there is no C++ compiler
        print(f"  torch.compile does not run here: {str(e).splitlines()[0]}")
        return []
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    times = interleave({"ours, eager": lambda: run("eager", model), "ours, torch.compile": lambda: run("compiled", fast)},
                       size["rounds"])
    later = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    table = show(f"rollout, B = {B}, {P} + {S}", times)
    table |= {"first_seconds": first, "graphs": [graphs, later], "same_greedy": (ids["eager"] == ids["compiled"]).float().mean().item()}
    print(f"    the first one takes {first:.1f} s; {graphs} graphs after it, {later} at the end; "
          f"greedy ids equal: {table['same_greedy']:.1%}")
    return [table]


def start(size: dict) -> list[dict]:
    """How long until something happens."""
    def run(*command: str) -> Callable:
        return lambda: subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)

    def first_step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "metrics.jsonl"
            command = [sys.executable, "train.py", "--think_vocab", "2048", "--out", folder]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while not (log.exists() and '"kind": "step"' in log.read_text()) and process.poll() is None:
                    time.sleep(0.05)
                process.kill()
    arms = {"python train.py --help": run("train.py", "--help"), "python -c 'import torch'": run("-c", "import torch")}
    return [show("a command", interleave(arms, size["rounds"])),
            show("the default command", {"until its first step is done": [seconds(first_step)]})]


SECTIONS = {"rollout": rollouts, "sampler": sampler, "loss": loss, "update": updates, "next_token": next_token, "cups": cups,
            "scale": scale, "compile": compiled, "start": start}


def main() -> None:
    p = train.Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION", help=", ".join(SECTIONS))
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (as torch would have it)")
    p.add_argument("--quick", action="store_true", help="tiny shapes: do all arms run? The numbers mean nothing")
    args = p.parse_args()
    if args.threads < 1:
        p.error(f"--threads must be at least 1, not {args.threads}")
    torch.set_num_threads(args.threads)
    out, size = Path("bench.json"), QUICK if args.quick else FULL
    results = json.loads(out.read_text()) if out.exists() else {}
    machine = {"device": torch.cuda.get_device_name() if GPU else f"CPU, {os.cpu_count()} cores", "torch": torch.__version__,
               "threads": args.threads, "quick": args.quick}
    print(", ".join(f"{k} {v}" for k, v in machine.items()) + ("" if GPU else "; GPU arms: unmeasured, there is none"))
    for name in args.only:
        print(name)
        torch.manual_seed(0)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # what else ran, on a shared machine
        results[name] = {"machine": machine | {"load": load}, "tables": SECTIONS[name](size)}
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
