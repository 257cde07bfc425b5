"""Questions that take several seeds of several arms, each answered by one command.

    python experiments.py channel --seeds 5      # figures/channel.png and figures/channel.json, and a table
    python experiments.py                        # lists them, with how long they take

An experiment is a question, a prediction that was written down before the first run, and arms; an arm is a line of flags for
train.py. Each (arm, seed) is one run of train.py in runs/, found again by its flags: finished runs are kept when an
experiment is cut off, and arms that two experiments share are run once. Two runs at a time, of one thread each.

Left out on purpose: a sweep over hyperparameters, anything that a run's own folder does not say.
"""
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import OPENING
from rollout import load_run, visible
from settings import Parser

ROOT = Path(__file__).resolve().parent
OUT = ROOT  # where runs/ and figures/ are
SHOWN = (1, 2, 3, 6, 10, 20, 30)  # n of the table
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's t for 1, 2, ... degrees of freedom


@dataclass
class Arm:
    """flags: of train.py. seconds: of one run on one thread, roughly. after: the arm whose checkpoint this one needs, and `by`
    the flag that hands it over."""
    flags: str
    seconds: int
    after: str | None = None
    by: str = "--model"


@dataclass
class Experiment:
    question: str
    prediction: str
    arms: dict[str, Arm]


STREAM = "--approach stream"
TOKENS = f"{STREAM} --think_vocab 2048"
# what --thinker sets (train.TAUGHT), for thoughts that are told and need no thinker
AS_TAUGHT = "--window 0 --curriculum off --new_tokens 40 --samples 1 --prompts 32 --baseline none --lr 4e-3 --steps 1500"
EXPERIMENTS = {
    "channel": Experiment(
        "What does a channel of one thought a move carry, as an id, as a vector, as the truth, as nothing?",
        "With a window, ids, vectors and the truth reach 100 % at n = 10 and hold at n = 30; filler and none stay near chance. "
        "With full attention vectors reach 99 % at n = 10 and fall at n = 30; filler and none creep up to n = 4.",
        {"tokens, window": Arm(TOKENS, 100),
         "continuous, window": Arm(f"{STREAM} --thoughts continuous --steps 600", 60),
         "oracle, window": Arm(f"{STREAM} --thoughts oracle --steps 600", 60),
         "filler, window": Arm(f"{STREAM} --thoughts filler --steps 1100", 90),
         "none, window": Arm(f"{STREAM} --thoughts none --steps 1450", 90),
         "tokens, full": Arm(TOKENS, 90, "tokens, window", "--thinker"),
         "continuous, full": Arm(f"{STREAM} --thoughts continuous --steps 3000", 135, "continuous, window", "--thinker"),
         "oracle, full": Arm(f"{STREAM} --thoughts oracle {AS_TAUGHT}", 80),
         # the controls have steps for the time of tokens with full attention on a quiet machine, the thinker's included
         "filler, full": Arm(f"{STREAM} --thoughts filler --window 0 --steps 2200", 180),
         "none, full": Arm(f"{STREAM} --thoughts none --window 0 --steps 3000", 180),
         "none, full, 4 layers": Arm(f"{STREAM} --thoughts none --window 0 --layers 4 --steps 1150", 180)}),
    "waterfall": Experiment(
        "Which parts of the recipe does it need?",
        "Without the window, without the curriculum, or without siblings as a baseline nothing is learnt beyond n = 3. Without the "
        "entropy bonus codes collapse at n = 2. Credit from the next answer alone (gamma 0.5) works, but slower.",
        {"the recipe": Arm(TOKENS, 160),
         "full attention": Arm(f"{TOKENS} --window 0", 160),
         "no curriculum": Arm(f"{TOKENS} --curriculum off", 330),
         "no entropy bonus": Arm(f"{TOKENS} --entropy 0", 160),
         "baseline: mean of the batch": Arm(f"{TOKENS} --baseline batch", 160),
         "no baseline": Arm(f"{TOKENS} --baseline none", 160),
         "gamma 0.5": Arm(f"{TOKENS} --gamma 0.5", 160),
         "answers by reward alone": Arm(f"{TOKENS} --answer_grad off", 160)}),
    "when": Experiment(
        "Released from forced thinking, at a price for each thought: when does it still think?",
        "After moves of the ball, P(think) stays over 0.95; after moves that leave it where it is, it falls under 0.3. The answers "
        "stay right. Thoughts against n is a line whose slope is the share of moves that move the ball (0.4 here).",
        {"forced": Arm(f"{TOKENS} --idle 0.4", 160),
         "released, 0.05 nats": Arm(f"{STREAM} --think free --think_prior 0.9 --think_cost 0.05 --idle 0.4 --curriculum off --steps 800",
                                    200, "forced"),
         "released, 0.2 nats": Arm(f"{STREAM} --think free --think_prior 0.9 --think_cost 0.2 --idle 0.4 --curriculum off --steps 800",
                                   200, "forced")}),
}


def folder(experiment: Experiment, arm: str, seed: int) -> Path:
    """Where a run lives: a name made of all that it depends on, its base's flags included."""
    it = experiment.arms[arm]
    base = f"{it.by} {experiment.arms[it.after].flags}" if it.after else ""
    return OUT / "runs" / f"{hashlib.sha256(f'{base}|{it.flags}'.encode()).hexdigest()[:12]}_{seed}"


def last_line(out: Path) -> dict | None:
    """The evaluation that ended a run, or None where it has not ended."""
    if not (out / "done").exists():
        return None
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    return [x for x in lines if x["kind"] == "eval"][-1]


def run(experiment: Experiment, arm: str, seed: int) -> None:
    """One run of train.py, unless it is there already. Raises ValueError with its last line where it fails."""
    out, after = folder(experiment, arm, seed), experiment.arms[arm].after
    if last_line(out):
        return
    out.mkdir(parents=True, exist_ok=True)
    base = [experiment.arms[arm].by, str(folder(experiment, after, seed) / "ckpt.pt")] if after else []
    command = [sys.executable, "train.py", *experiment.arms[arm].flags.split(), *base, "--seed", str(seed), "--out", str(out)]
    with open(out / "log.txt", "w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        text = (out / "log.txt").read_text().strip()
        raise ValueError(f"{' '.join(command[1:])} failed: {text.splitlines()[-1] if text else done.returncode}")
    (out / "done").touch()


def run_all(experiment: Experiment, seeds: int) -> None:
    """All runs, two at a time, those that others start from first."""
    jobs = [(arm, s) for s in range(seeds) for arm in experiment.arms]
    left = [j for j in jobs if not last_line(folder(experiment, *j))]
    seconds = sum(experiment.arms[arm].seconds for arm, _ in left)
    print(f"{len(left)} of {len(jobs)} runs are to be made, about {seconds / 60:.0f} minutes of one core")
    bar = tqdm(total=len(left), unit="run")
    pool = ThreadPoolExecutor(2)
    try:
        for now in ([j for j in left if not experiment.arms[j[0]].after], [j for j in left if experiment.arms[j[0]].after]):
            running = {pool.submit(run, experiment, *j): j for j in now}
            for done in as_completed(running):
                done.result()
                bar.update()
                bar.set_postfix_str(running[done][0])
    finally:  # a run that failed, or Ctrl-C: those that wait in the queue are not begun
        pool.shutdown(cancel_futures=True)
        bar.close()


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval over seeds (Student's t); one seed has none."""
    x = np.array(values)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(T95[min(len(x) - 2, len(T95) - 1)] * x.std(ddof=1) / len(x) ** 0.5)


def mflop(checkpoint: Path, end: dict, n: int = 10) -> tuple[float, float]:
    """Millions of multiplications and additions for one story of one round of n moves, up to its answer: in the blocks (matrix
    products of each place, and each pair of places where one sees the other), and in the heads (N logits a thought that is
    chosen among several, V for the answer). end: an evaluation, which says how often a model thinks that may choose."""
    model, rules, _ = load_run(checkpoint)
    c, thoughts = model.config, 0 if rules.think == "never" else round(end.get("thoughts_by_n", [n] * n)[n - 1])
    story = [False] * OPENING + [x for i in range(n) for x in ([False, True, False] if i < thoughts else [False, False])] + [False] * 2
    is_think = torch.tensor([story])  # after each move a thought, then a comma or the dot; " Where" and "?"
    T = len(story)
    pairs = T * (T + 1) // 2 if not rules.window else int(visible(is_think, rules.window).sum())
    blocks = c.n_layer * (24 * c.n_embd ** 2 * T + 4 * c.n_embd * pairs)
    heads = 2 * c.n_embd * (c.vocab_size + thoughts * c.think_vocab * (c.think_vocab > 1))
    return blocks / 1e6, heads / 1e6


def collect(name: str, seeds: int) -> dict:
    """What figures/NAME.json holds: question, prediction, and for each arm its command and what each seed ended with."""
    experiment = EXPERIMENTS[name]
    keep = ("seconds", "accuracy_by_n", "accuracy_first_by_n", "accuracy_shuffled_by_n", "nats_without_thoughts", "thoughts_per_token",
            "free_accuracy", "thinks_after_moved", "thinks_elsewhere", "thoughts_by_n")
    arms = {}
    for arm, spec in experiment.arms.items():
        ends = [last_line(folder(experiment, arm, s)) for s in range(seeds)]
        arms[arm] = {"command": f"python train.py {spec.flags}" + (f" {spec.by} <{spec.after}>/ckpt.pt" if spec.after else ""),
                     "mflop": mflop(folder(experiment, arm, 0) / "ckpt.pt", ends[0]),
                     "seeds": [{k: end[k] for k in keep if k in end} for end in ends]}
    return {"question": experiment.question, "prediction": experiment.prediction,
            "command": f"python experiments.py {name} --seeds {seeds}", "arms": arms}


def table(result: dict) -> str:
    """Markdown: per cent right by n, mean and 95 % interval over seeds; MFLOP of a story of n = 10 (see `mflop`); for models that
    choose when to think, when they do (thoughts a move: the slope of thoughts against n)."""
    lines = ["| arm | " + " | ".join(f"n = {n}" for n in SHOWN) + " | blocks, MFLOP | heads, MFLOP | seconds |",
             "|---" * (len(SHOWN) + 4) + "|"]
    for arm, found in result["arms"].items():
        cells = []
        for n in SHOWN:
            mean, half = interval([100 * s["accuracy_by_n"][n - 1] for s in found["seeds"]])
            cells.append(f"{mean:.0f}" + (f" ± {half:.0f}" if half == half else ""))
        cells += [f"{x:.2f}" for x in found["mflop"]]
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {np.mean([s['seconds'] for s in found['seeds']]):.0f} |")
    chosen = {arm: found["seeds"] for arm, found in result["arms"].items() if "thoughts_by_n" in found["seeds"][0]}
    if chosen:
        lines += ["", "| arm, by seed | thinks after moves that move the ball, % | elsewhere, % | thoughts a move |", "|---" * 4 + "|"]
    for arm, seeds in chosen.items():
        after, elsewhere = (", ".join(f"{100 * s[k]:.1f}" for s in seeds) for k in ("thinks_after_moved", "thinks_elsewhere"))
        slope = ", ".join(f"{np.polyfit(range(1, 31), s['thoughts_by_n'], 1)[0]:.2f}" for s in seeds)
        lines.append(f"| {arm} | {after} | {elsewhere} | {slope} |")
    return "\n".join(lines)


def draw(result: dict, path: Path) -> None:
    """Accuracy against n: a line for each arm's mean, and a thin one for each seed."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axis = plt.subplots(figsize=(9, 5.2))
    for i, (arm, found) in enumerate(result["arms"].items()):
        y, style = 100 * np.array([s["accuracy_by_n"] for s in found["seeds"]]), ("-", "--", ":")[i // 10]
        x = np.arange(1, y.shape[1] + 1)
        axis.plot(x, y.T, color=f"C{i % 10}", lw=0.5, alpha=0.4)
        axis.plot(x, y.mean(0), color=f"C{i % 10}", ls=style, lw=2, label=arm)
    axis.axhline(100 / 3, color="grey", lw=0.8, ls=":")
    axis.set(xlabel="n, moves since the anchor (trained on n <= 10; dotted: chance)", ylabel="answers right, %", ylim=(0, 103),
             title=result["question"])
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.text(0.01, 0.01, f"{result['command']}; thin lines: seeds", fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    p = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("name", nargs="?", choices=list(EXPERIMENTS), help="which one; none: list them")
    p.add_argument("--seeds", type=int, default=5, help="runs of each arm (5)")
    args = p.parse_args()
    if args.name is None:
        for name, e in EXPERIMENTS.items():
            print(f"{name}: {e.question}\n    {len(e.arms)} arms, about {sum(a.seconds for a in e.arms.values()) / 60:.0f} "
                  f"minutes of one core a seed\n    prediction: {e.prediction}")
        print("python experiments.py channel --seeds 5 runs the first: runs/ keeps what is done, figures/ gets the results")
        return
    if args.seeds < 1:
        p.error(f"--seeds must be at least 1, not {args.seeds}")
    start = time.time()
    try:
        run_all(EXPERIMENTS[args.name], args.seeds)
        result = collect(args.name, args.seeds)
        (OUT / "figures").mkdir(exist_ok=True)
        (OUT / "figures" / f"{args.name}.json").write_text(json.dumps(result, indent=1))
        draw(result, OUT / "figures" / f"{args.name}.png")
    except (ValueError, OSError) as e:
        p.error(str(e))
    print(f"{result['question']}\nprediction: {result['prediction']}\n\n{table(result)}\n\n"
          f"{time.time() - start:.0f} s; figures/{args.name}.png and figures/{args.name}.json")


if __name__ == "__main__":
    main()
