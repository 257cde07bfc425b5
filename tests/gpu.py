"""The first thing to run where there is a GPU: is all right there, and how fast is it?

    python tests/gpu.py                     # all, under 8 minutes: figures/bench_gpu.json
    python tests/gpu.py --only right place  # some; the file keeps what it has of the others
    python tests/gpu.py --quick             # tiny, on a CPU too: does it all run?

One section that fails is written down, and the next one runs. None begins with less than half of
its longest time left of --budget. It needs no network and no weights; one arm wants transformers.

Left out on purpose: several GPUs, and whether anything is learned. Knows lab/bench.py and all below
it.
"""
import argparse
import contextlib
import copy
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

import train  # noqa: E402
from data import OPENING, plain  # noqa: E402
from fast import sampler_of, unembed  # noqa: E402
from lab.bench import Noise, hugging_face, new_run, train_loop  # noqa: E402
from model import GPT, Config, as_checkpoint, load  # noqa: E402
from next_token import roll, states  # noqa: E402
from reward import advantages, rollout_loss, scale_of, score  # noqa: E402
from rollout import GREEDY, Luck, Rules, naive_rollout, rollout  # noqa: E402
from settings import resolve  # noqa: E402
from task import open_source  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


class Size(NamedTuple):
    """B contexts, G siblings; P prompt tokens, S new ones, M thoughts in a row."""
    config: Config = Config()
    N: int = 2048
    B: int = 8
    G: int = 4
    P: int = 64
    S: int = 64
    M: int = 32
    steps: int = 6
    cups: int = 120
    copied: int = 2 ** 29  # floats

    @property
    def R(self) -> int:
        return self.B * self.G


QUICK = Size(Config(2, 2, 32, 256, 500), 50, 2, 2, 8, 8, 4, 3, 6, 2 ** 20)


class Report:
    """What was found, in a file that is written after each section."""

    def __init__(self, path: Path, budget: float):
        self.path, self.budget, self.born = path, budget, time.time()
        self.found = json.loads(path.read_text()) if path.exists() else {}

    @property
    def left(self) -> float:
        return self.budget - (time.time() - self.born)

    def check(self, name: str, ok, value) -> None:
        self.found.setdefault("checks", {})[name] = {"ok": bool(ok), "value": value}
        print(f"  {'ok  ' if ok else 'FAIL'} {name}: {value}", flush=True)

    def write(self) -> None:
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")


def sync() -> None:
    if GPU:
        torch.cuda.synchronize()


def seconds(task: Callable, n: int = 5, warm: int = 2) -> float:
    """The median of n."""
    spent = []
    for _ in range(warm + n):
        sync()
        start = time.perf_counter()
        task()
        sync()
        spent.append(time.perf_counter() - start)
    return median(spent[warm:])


def off(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|"""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return ((a - b).norm() / b.norm()).item()


@contextlib.contextmanager
def tf32():
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def half(on: bool = True):
    return torch.autocast(DEVICE, torch.bfloat16, enabled=on)


def random_gpt2(size: Size, N: int = 0) -> GPT:
    torch.manual_seed(0)
    model = GPT(size.config).to(DEVICE)
    if N:
        ids = torch.randint(size.config.vocab_size, (8, 32), device=DEVICE)
        model.grow(N, ids, 0.1, torch.Generator().manual_seed(0))
    return model


def forget() -> None:
    """Give back what graphs and compiled functions hold on to: it is no part of the next peak."""
    torch._dynamo.reset()
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


# The sections

def limits(size: Size, report: Report) -> dict:
    """What this card does at the most, and what a launch costs."""
    a, b = (torch.empty(size.copied, device=DEVICE) for _ in "ab")
    one = torch.zeros(1, device=DEVICE)
    h = torch.randn(size.R, size.config.n_embd, device=DEVICE)
    w = torch.randn(size.config.vocab_size, size.config.n_embd, device=DEVICE)
    found = {"copied_bytes_a_second": 8 * size.copied / seconds(lambda: b.copy_(a)),
             "launch": seconds(lambda: [one.add_(1) for _ in range(1000)]) / 1000}
    with tf32():
        found["head"] = seconds(lambda: h @ w.T, 20)
    return found


def right(size: Size, report: Report) -> dict:
    """The shipped model in float32: CPU and GPU, graph and eager, sampler and gradient pass,
    rollout and naive twin."""
    s = resolve({"data": "cups", "approach": "stream", "device": "cpu", "compile": "off"})
    source = open_source(s.data, load("pico").text_ids, s)
    text = source.text(replace(s, prompts=8), 0, 3).repeat(4)
    P, after = OPENING, source.think_after(s.approach, "forced")
    free = Rules("free", 2, 8, 5)
    for name, rules in (("forced", Rules("forced", 1, 7, 5, after)), ("free", free),
                        ("branches", Rules("free", 3, 3, 7, persist=False)), ("own text", free)):
        kept = {}
        for device in dict.fromkeys(("cpu", DEVICE)):
            model = load("pico")
            model.grow(256, text.ids[:, :20], 0.4, torch.Generator().manual_seed(0))
            model, here = model.to(device), text.to(device)
            if name == "own text":
                here = replace(plain(here.ids[:, :P], P, text.S), siblings=4)
            twin = sampler_of(model, torch.float32, False)
            luck = Luck(0, 1, "rollout")
            ro = roll(twin, here, rules, luck)
            plainly = roll(model, here, rules, luck)
            if twin.recorder is not None and twin.recorder.kept:  # the others are not recorded
                report.check(f"{name}, {device}: graph = eager, ids",
                             torch.equal(ro.ids, plainly.ids), off(ro.h, plainly.h))
            if rules.persist and device == DEVICE:
                some = here.each(lambda x: x[:6])
                u = luck(text.S + rules.budget, len(text.ids)).to(device)
                naive = naive_rollout(model, some, rules, u[:, :6])
                same = sum(a == b for a, b in zip(ro.rows(slice(6)).kept(), naive))
                report.check(f"{name}, {device}: rollout = naive twin, rows of 6", same == 6, same)
            kept[device] = *learn(model, ro, here, rules, s), ro
        (ra, ga, _, a), (rb, gb, hb, b) = kept["cpu"], kept[DEVICE]
        same = (a.ids == b.ids.cpu()).float().mean().item()
        report.check(f"{name}: ids on cpu = on {DEVICE}, places", same > 0.995, same)
        if same == 1:
            report.check(f"{name}: rewards", off(rb, ra) < 1e-4, off(rb, ra))
            report.check(f"{name}: gradient", off(gb, ga) < 1e-3, off(gb, ga))
        real = (b.is_text | b.is_think)[:, :-1]
        apart = off(b.h[:, :-1][real], hb[:, :-1][real])
        report.check(f"{name}: sampler's states = gradient pass's", apart < 1e-4, apart)
    return {}


def learn(model: GPT, ro, text, rules: Rules, s) -> tuple[Tensor, Tensor, Tensor]:
    """-> rewards, gradient of all parameters, states of the gradient pass"""
    s = replace(s, samples=4)
    pays = text.pays if text.given else torch.ones_like(ro.text[:, ro.P:], dtype=torch.float32)
    scores = score(model, ro, pays)
    credit = advantages(scores.r, ro, text, s)
    h = states(model, ro, rules)
    weight = torch.full_like(scores.r, 0.01)
    rollout_loss(model, h, ro, credit, weight, scale_of(s, credit, 0.0))[0].backward()
    grad = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return scores.r, grad, h


def precision(size: Size, report: Report) -> dict:
    """Logits in float32, TF32 and bfloat16 beside float64's on the CPU; and log-probs where GPT-2's
    logits lie, near -100."""
    model, found = random_gpt2(size), {}
    ids = torch.randint(size.config.vocab_size, (2, size.P))
    exact = copy.deepcopy(model).cpu().double()
    with torch.no_grad():
        want = exact.text_logits(exact(ids))
        for name, how, on, most in (("float32", contextlib.nullcontext, False, 1e-4),
                                    ("TF32", tf32, False, 3e-3), ("bfloat16", tf32, True, 3e-2)):
            with how(), half(on):
                apart = off(model.text_logits(model(ids.to(DEVICE))), want)
            report.check(f"logits in {name}: off by", apart < most, apart)
        h = model(ids.to(DEVICE)).flatten(0, 1)
        common = F.normalize(h.mean(0), dim=0)
        w = model.wte.weight - common * (100 / (h @ common).mean())  # all rows share a direction
        true = (h.double() @ w.double().T).log_softmax(-1)
        with tf32(), half():
            for name, logits in (("our head", unembed(h, w)), ("a bfloat16 head", h @ w.T)):
                found[name] = (logits.double().log_softmax(-1) - true).std().item()
    report.check("log p near -100, our head, nats", found["our head"] < 0.01, found)
    return found


def least(size: Size, report: Report, places: int) -> float:
    """The seconds in which one place's bytes can be read: body in bfloat16, head in float32, and
    the cache."""
    c, model = size.config, GPT(size.config)
    body = sum(p.numel() for p in model.h.parameters())
    read = 2 * body + 4 * (c.vocab_size + size.N) * c.n_embd
    read += 2 * c.n_layer * size.R * places * c.n_embd * 2
    return read / report.found.get("limits", {}).get("copied_bytes_a_second", 3e12)


def place(size: Size, report: Report) -> dict:
    """Milliseconds of one place of a rollout, each arm a whole rollout; and text alone, beside
    Hugging Face."""
    c, found, ids = size.config, {}, {}
    model = random_gpt2(size, size.N)
    numbers = torch.Generator().manual_seed(2)
    given = torch.randint(c.vocab_size, (size.B, size.P + size.S), generator=numbers).to(DEVICE)
    text = replace(plain(given.repeat_interleave(size.G, 0), size.P, size.S), siblings=size.G)
    free, T = Rules("free", 1, size.M), size.P + size.S + size.M
    own = replace(plain(text.ids[:, :size.P], size.P, size.S), siblings=size.G)

    def arm(name: str, task: Callable, places: int, floor: float) -> None:
        start = time.time()
        out = task()
        sync()
        first, spent = time.time() - start, seconds(task, 5, 1)
        ids[name] = out.ids if hasattr(out, "ids") else None
        found[name] = {"ms": 1e3 * spent / places, "first": first,
                       "of_limit": floor * places / spent}
        print(f"    {name:<48} {1e3 * spent / places:7.3f} ms a place, "
              f"{floor * places / spent:5.1%} of the limit, first {first:.1f} s", flush=True)

    def ours(sampler: GPT, text, rules: Rules, dials=None):
        with half():
            return rollout(sampler, text, rules, Luck(0, 0, "rollout"), *[dials] * bool(dials))
    graph = sampler_of(model, torch.bfloat16, False)
    compiled = sampler_of(model, torch.bfloat16, True) if GPU or size == QUICK else None
    arms = {"eager": model, "one CUDA graph a place": graph, "a compiled graph": compiled}
    with tf32():
        floor = least(size, report, T)
        for name, sampler in arms.items():
            arm(f"free thoughts, {name}", lambda: ours(sampler, text, free), T - size.P, floor)
        floor = least(size, report, size.P + size.S)
        for name, sampler in arms.items():
            arm(f"text alone, {name}", lambda: ours(sampler, own, Rules("never"), GREEDY), size.S,
                floor)
        with contextlib.suppress(ImportError):
            peer = hugging_face(model).bfloat16()
            said = dict(attention_mask=torch.ones_like(own.ids), max_new_tokens=size.S,
                        do_sample=False, pad_token_id=0)
            arm("text alone, Hugging Face generate", lambda: peer.generate(own.ids, **said), size.S,
                floor)
            if report.left > 100:
                arm("text alone, Hugging Face generate, static", lambda: peer.generate(
                    own.ids, cache_implementation="static", **said), size.S, floor)
    eager = ids["free thoughts, eager"]
    for name in arms:
        same = (ids[f"free thoughts, {name}"] == eager).float().mean().item()
        # in bfloat16 other kernels round otherwise, and what follows another choice differs
        report.check(f"free thoughts, {name}: ids as eager", same > 0.7, same)
    return found


def reckoned(size: Size, N: int, rows: int, places: int, teacher: bool) -> float:
    """docs/GPU.md's formula without the 1 GB of CUDA: bytes."""
    c = size.config
    n = sum(p.numel() for p in GPT(c).parameters()) + N * c.n_embd
    cache = 2 * c.n_layer * size.R * places * c.n_embd * 2
    return (18 * n + 6 * n * teacher + cache + c.n_layer * rows * places * 36 * c.n_embd
            + 5 * 4 * 512 * (c.vocab_size + N) + c.vocab_size * c.n_embd * 4)


def step(size: Size, report: Report) -> dict:
    """Updates of each approach on noise: finite? milliseconds, where they go, memory, waits."""
    found, base = {}, size.config
    source = Noise(base.vocab_size)
    for name, more in (("stream", ()), ("teacher", ()), ("next_token", ()),
                       ("stream, continuous", ("--thoughts", "continuous")),
                       ("stream, compile off", ("--compile", "off"))):
        N = 1 if "continuous" in more else size.N
        approach = name.split(",")[0]
        words = ["--data", "webtext", "--model", "gpt2", "--approach", approach, *more,
                 "--prompts", size.B, "--samples", size.G, "--prompt_tokens", size.P,
                 "--new_tokens", size.S]
        words += ["--budget", size.M] if approach != "next_token" else ["--max_thoughts", 4]
        words += ["--think_vocab", size.N] if N > 1 else []
        # the teacher's text is written for AHEAD steps at once: whole rounds of them are counted
        steps = 1 + (2 * train.AHEAD if approach == "teacher" else size.steps)
        with patch.object(train, "load", lambda name: GPT(base, source.text_ids)):
            run = new_run([*words, "--steps", steps], source)
        if GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            start = time.time()
            times, shares = train_loop(run)
            whole = time.time() - start
        peak = 0
        if GPU:
            torch.cuda.set_sync_debug_mode("default")
            peak = torch.cuda.max_memory_allocated()
        waits = [f"{Path(w.filename).name}:{w.lineno}" for w in seen
                 if "synchroniz" in str(w.message)]
        places = size.P + size.S + (size.M if approach != "next_token" else 4 * size.S)
        table = reckoned(size, N, size.R, places, approach == "teacher")
        ms = 1e3 * sum(times) / len(times)
        found[name] = {"ms": ms, "first": whole - sum(times), "shares": shares,
                       "peak_gb": peak / 1e9, "table_gb": table / 1e9,
                       "waits": {k: waits.count(k) / steps for k in sorted(set(waits))}}
        finite = all(p.isfinite().all().item() for p in run.model.parameters())
        report.check(f"{name}: finite after {steps} steps", finite,
                     f"{ms:.1f} ms a step, {peak / 1e9:.2f} GB, table "
                     f"{table / 1e9:.2f}, first {whole - sum(times):.1f} s")
        if GPU:
            near = 0.85 <= peak / table <= 1.15
            report.check(f"{name}: peak within 15 % of the table", near, peak / table)
        print("       " + ", ".join(f"{k} {v:.0%}" for k, v in shares.items() if v > 0.005)
              + f"; waits {found[name]['waits']}", flush=True)
        del run
        forget()
    return found


def command(size: Size, report: Report) -> dict:
    """The command line on this machine."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        def run(name: str, *words) -> str:
            start = time.time()
            out = Path(folder) / name.replace(" ", "_")
            done = subprocess.run(
                [sys.executable, "train.py", "--out", str(out), *map(str, words)], cwd=ROOT,
                capture_output=True, text=True, timeout=240,
                env={**os.environ, "TORCH_HOME": folder, "HF_HUB_OFFLINE": "1"})
            said = (done.stdout + done.stderr).replace(folder, "FOLDER")
            end = done.stdout.replace(folder, "FOLDER").splitlines()[-6:]
            found[name] = {"rc": done.returncode, "seconds": time.time() - start, "end": end}
            print("       " + "\n       ".join(said.splitlines()[-4:]))
            return said
        for name, steps in (("stream", size.cups), ("teacher", size.cups // 2)):
            run(f"cups {name}", "--data", "cups", "--approach", name, "--steps", steps)
            report.check(f"cups, {name}: the command runs", found[f"cups {name}"]["rc"] == 0,
                         found[f"cups {name}"]["seconds"])
        if GPU:
            said = run("without weights")
            line = said.splitlines()[-1]
            report.check("without weights: one line, no traceback", "Traceback" not in said
                         and found["without weights"]["rc"] == 2 and "--data cups" in line, line)
        weights = Path(folder) / "random.pt"
        torch.save(as_checkpoint(random_gpt2(size)), weights)
        words = Path(folder) / "words.txt"
        words.write_text("\n".join((ROOT / x).read_text() for x in ("README.md", "EXERCISES.md")))
        if size != QUICK:
            run("124M on a file", "--approach", "stream", "--model", weights, "--data", words,
                "--steps", 20, "--think_vocab", size.N)
            report.check("124M on a file: the command runs", found["124M on a file"]["rc"] == 0,
                         found["124M on a file"]["seconds"])
    return found


# section -> what it runs, seconds it takes at most
SECTIONS = {"limits": (limits, 15), "right": (right, 40), "precision": (precision, 30),
            "place": (place, 150), "step": (step, 150), "command": (command, 100)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    p.add_argument("--quick", action="store_true", help="tiny shapes; the numbers mean nothing")
    p.add_argument("--budget", type=float, default=480, help="seconds in all [480]")
    p.add_argument("--out", type=Path, help="[figures/bench_gpu.json; --quick: none]")
    args = p.parse_args()
    if args.out is None:
        args.out = (Path(tempfile.mkdtemp()) if args.quick else ROOT / "figures") / "bench_gpu.json"
    report, size = Report(args.out, args.budget), QUICK if args.quick else Size()
    machine = {"device": torch.cuda.get_device_name() if GPU else "CPU",
               "torch": torch.__version__, "cuda": torch.version.cuda}
    if report.found.get("machine") != machine:  # never two machines in one file
        report.found = {"machine": machine}
    print(report.found["machine"], flush=True)
    for name in args.only:
        task, longest = SECTIONS[name]
        if report.left < 0.5 * longest:
            print(f"{name}: no time left")
            continue
        start = time.time()
        print(f"{name}, from {start - report.born:.0f} s on", flush=True)
        try:
            found = task(size, report)
        except Exception:
            found = {"failed": traceback.format_exc()[-3000:]}
            print(found["failed"], flush=True)
        report.found[name] = found | {"section_seconds": time.time() - start}
        report.write()
        forget()
    checks = report.found.get("checks", {})
    report.found["failed"] = [*(k for k, x in checks.items() if not x["ok"]),
                              *(k for k, x in report.found.items() if "failed" in x)]
    report.write()
    failed = report.found["failed"]
    print(f"{time.time() - report.born:.0f} s; {args.out}; failed: {failed or 'nothing'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
