"""What a run leaves for people to read: metrics.jsonl, samples.html and curves.png in its folder, and its last printed lines.

A `Journal` is open as long as the run goes on. It writes a line a step and an evaluation; a run that is resumed goes on in the
same file, from where its checkpoint stands. `line_of_step` says what is in a step's line (README: Columns). Nothing here
changes what is learnt.

Left out on purpose: checkpoints (train.py decides when, model.py how), servers that collect runs. Knows data.py, model.py,
rollout.py, reward.py, evaluate.py and tokenizer.py, and not train.py.
"""
import itertools
import json
import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from data import Cups
from evaluate import N_MAX, evaluate
from model import GPT
from reward import sibling_spread
from rollout import Rules
from tokenizer import Tokenizer, html_page


def set_aside(out: Path) -> None:
    """A run that the folder holds already moves to a folder in it, old1, old2, ...: nobody asked for it to be lost. (A run that
    made no step is none.)"""
    log = out / "metrics.jsonl"
    if not ('"kind": "step"' in log.read_text(errors="replace") if log.exists() else (out / "ckpt.pt").exists()):
        return
    old = next(path for i in itertools.count(1) if not (path := out / f"old{i}").exists())
    old.mkdir()
    kept = [x.name for x in out.glob("ckpt_*.pt")]
    for name in ("ckpt.pt", *kept, "metrics.jsonl", "curves.png", "samples.html", "probe.json", "probe.png"):  # weights first
        if (out / name).exists():
            (out / name).rename(old / name)
    print(f"{out}/ held a run already (--resume would have gone on with it): it is now in {old}/", flush=True)


class Journal:
    """The open log of a run: evals, all its evaluations so far; saved, when its last checkpoint was written."""

    def __init__(self, out: Path, step: int):
        """step: how many the checkpoint has made. Lines after that are dropped: these steps are made again."""
        self.out, self.log, self.t0 = out, out / "metrics.jsonl", time.time()
        self.saved = self.t0
        done = {"step": step, "eval": step + 1}  # an evaluation is logged before its checkpoint is written
        kept = []
        for text in self.log.read_text(errors="replace").splitlines() if step and self.log.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:  # half a line is the last thing that a killed run wrote
                break
            kept += [line] if line["step"] < done[line["kind"]] else []
        part = self.log.with_name("metrics.jsonl.part")  # as with checkpoints: at no moment is there less than before
        part.write_text("".join(json.dumps(x) + "\n" for x in kept))
        os.replace(part, self.log)
        self.evals = [x for x in kept if x["kind"] == "eval"]

    def write(self, kind: str, step: int, values: dict) -> None:
        """One line. The file is closed again each time, so that a run which is killed has lost none."""
        line = {"kind": kind, "step": step, "seconds": time.time() - self.t0, **values}
        with open(self.log, "a") as f:
            f.write(json.dumps(line) + "\n")
        self.evals += [line] if kind == "eval" else []

    def measure(self, a: dict, step: int, whole: bool, model: GPT, teacher: GPT | None, data, rules: Rules,
                base: GPT | None = None) -> None:
        """An evaluation: its line, and samples.html anew. whole: at a run's start and end, with more stories."""
        each = 32 if whole else 8  # stories for every n
        result, ro = evaluate(model, data, rules, teacher, a["prompt_tokens"], a["new_tokens"], each,
                              rows=128 if isinstance(data, Cups) else a["prompts"] * a["samples"],  # a step's worth
                              base=base)
        self.write("eval", step, result)
        tokenizer = Tokenizer(model.text_ids, model.config.think_vocab, rules.continuous)
        html = [tokenizer.show(row, ro.P, "html") for row in ro.rows(0, 8).kept()]
        (self.out / "samples.html").write_text(html_page(html, f"step {step}"), encoding="utf-8")

    def close(self, forced: bool) -> None:
        """The curves, and the last lines that a run prints."""
        draw_curves(self.out)
        report(self.evals[0], self.evals[-1], forced)
        print(f"{time.time() - self.t0:.0f} s; {self.out}/ holds ckpt.pt, metrics.jsonl, curves.png, samples.html; now try\n"
              f"  python sample.py --checkpoint {self.out}/ckpt.pt")


def line_of_step(state: dict, r: torch.Tensor, pays: torch.Tensor | None, returns: torch.Tensor, G: int, loss: float,
                 entropy: float, thoughts: int, norm: float) -> dict:
    """What metrics.jsonl says of a step (README: Columns). r, returns [R, S]; entropy: summed over thoughts."""
    paying = pays.sum().item() if pays is not None else r.numel()
    return {"reward": (r.sum() / max(paying, 1)).item(), "loss": loss,
            "spread": sibling_spread(returns, G).item() if G > 1 else 0.0,
            "entropy": entropy / max(thoughts, 1), "thoughts": thoughts / r.numel(), "grad_norm": norm, "stage": state["stage"],
            "skipped": state["skipped"]}


def notice_dead(state: dict, dead: bool) -> None:
    """Say, once for each time that it begins, that nothing is learnt."""
    state["dead"] = state["dead"] + 1 if dead else 0
    if state["dead"] == 50:
        tqdm.write("hint: for 50 steps siblings have not differed (spread < 0.002), so thoughts learn nothing. Does the "
                   "text need them? Try a narrower --window, another --seed, or a base that can't do without")


def draw_curves(out: Path) -> None:
    """curves.png from metrics.jsonl."""
    import matplotlib  # a second of start-up
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps, evals = ([x for x in lines if x["kind"] == kind] for kind in ("step", "eval"))
    figure, axes = plt.subplots(2, 2, figsize=(11, 7))
    panels = [(axes[0, 0], "reward", "reward (nats a paying text token)"),
              (axes[0, 1], "spread", "spread between siblings (0: dead)"),
              (axes[1, 0], "entropy", "entropy of thoughts (nats)")]
    for axis, key, title in panels:
        axis.plot([x["step"] for x in steps], [x[key] for x in steps], lw=1)
        axis.set(title=title, xlabel="step")
    if "accuracy_by_n" in evals[-1]:
        for x in (evals[0], evals[-1]):
            axes[1, 1].plot(range(1, N_MAX + 1), x["accuracy_by_n"], ".-", label=f"step {x['step']}")
        if "accuracy_shuffled_by_n" in evals[-1]:
            axes[1, 1].plot(range(1, N_MAX + 1), evals[-1]["accuracy_shuffled_by_n"], ".:", label="another story's thoughts")
        axes[1, 1].set(title="answers right by moves since the anchor", ylim=(0, 1.03))
        axes[1, 1].legend()
    else:
        axes[1, 1].plot([x["step"] for x in evals], [x["nats_without_thoughts"] for x in evals], ".-")
        axes[1, 1].set(title="held-out nats a token, without thoughts", xlabel="step")
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=110)
    plt.close(figure)


def report(before: dict, after: dict, forced: bool) -> None:
    """The last lines of a run: what was learnt, before -> after. forced: thinking was, so nobody asked for p_think."""
    def line(name: str, key: str, form: str = ".3f") -> None:
        if key in after:
            print(f"  {name:<46} {before.get(key, float('nan')):{form}} -> {after[key]:{form}}")
    print("what was learnt, before -> after:")
    line("reverse KL to the teacher, nats a text token", "reverse_kl")
    line("p_think on held-out text" + " (forced: not asked)" * forced, "p_think")
    line("thoughts a text token in own text", "thoughts_per_token")
    line("greedy: thinks after moves that move the ball", "thinks_after_moved")
    line("greedy: thinks before answers", "thinks_before_answers")
    line("greedy: thinks elsewhere, where it may", "thinks_elsewhere")
    line("log p of thoughts, read as words by the base", "thoughts_as_text")
    line("nats a held-out token, without thoughts", "nats_without_thoughts")
    line("what thoughts gain on held-out text, nats a token", "gain")
    if "accuracy_by_n" in after:
        first, shuffled = before["accuracy_by_n"], after.get("accuracy_shuffled_by_n")
        for n in (1, 2, 3, 6, 10, 20, 30):
            own = after["accuracy_by_n"][n - 1]
            print(f"  given stories, n = {n:<2}: answers right               {first[n - 1]:6.1%} -> {own:6.1%}"
                  + (f"   own minus another story's thoughts {100 * (own - shuffled[n - 1]):+.0f} points" if shuffled else ""))
        print("  own free stories: answers right                "
              f"{before['free_accuracy']:6.1%} -> {after['free_accuracy']:6.1%}   "
              f"({before['free_answers']} -> {after['free_answers']} answers)")
        right, answers = after["free_accuracy_by_n"], after["free_answers_by_n"]
        print("    by n: " + ", ".join(f"{n}: {100 * right[n - 1]:.0f}% of {answers[n - 1]}" for n in (1, 2, 3, 4, 6, 8, 10)
                                       if answers[n - 1]))
