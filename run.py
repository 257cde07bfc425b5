"""What a run is, on disk and in time: log, checkpoint, resume, stop signals, processes.

A `Run` holds all that a run has: model, source of text, rules, settings, progress. `open_run` reads
one from its checkpoint; it is the one reader, for --resume, sample.py and lab/. `Run.steps` is the
clock of the loop in train.py: it writes a line per step, evaluates, saves, and ends.

    run = open_run("out")                        # what `python train.py` left in out/
    run.model, run.rules, run.settings.lr

Left out on purpose: what is learned, and from what (train.py); servers that collect runs. Knows all
files below it: evaluate.py, reward.py, rollout.py, data.py, model.py, settings.py, tokenizer.py.
"""
import contextlib
import html
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from command import (ROOT, as_json, is_short_of_memory, make_folder, one_line, pyplot, script,
                     typed, write_whole)
from data import Source, Text, seeded
from evaluate import evaluate, print_report
from model import GPT, as_checkpoint, from_checkpoint, load
from reward import Credit, Score, all_rows, sibling_spread
from rollout import Luck, Rules
from settings import (Settings, check, choose_compile, choose_device, from_dict, means,
                      processes)
from task import end_of_answer, open_source, read_spec
from tokenizer import CSS, Tokenizer
from weights import read_weights, save

# torchrun says how many processes there are, and which one this is
try:
    WORLD, RANK = processes()
except ValueError:  # `join_processes` says why
    WORLD, RANK = 1, 0
SAVE_SECONDS = 60  # kill -9 loses a minute of work at most,
SAVE_TIMES = 20  # or as much as 20 checkpoints take to write
DEAD_SPREAD, DEAD_STEPS = 0.002, 50  # siblings that do not differ, for so long: a hint
FILES = ("ckpt.pt", "metrics.jsonl", "settings.json", "curves.png", "samples.html", "probe.json",
         "probe.png", "report.html")  # of a run, weights first


@dataclass
class Progress:
    """All that changes while a run goes on, except weights and optimizer."""
    end: int  # the last step
    step: int = 0  # updates made
    stage: int = 1  # of the curriculum
    accuracy: float = 0.0  # share right of this stage's questions, when it was last asked
    best: float = 0.0  # its best value in this stage
    in_stage: int = 0  # steps in this stage since then
    dead: int = 0  # steps in a row in which siblings did not differ
    skipped: int = 0  # steps without a finite loss or gradient
    in_a_row: int = 0  # of those, how many just now
    wanted: bool = False  # the end was asked for: no curriculum ends the run sooner


@dataclass
class Update:
    """What one update was."""
    loss: float
    entropy: float  # summed over thoughts
    norm: float  # of the gradient, before it is cut to 1


class Run:
    """A model with all that belongs to it."""

    def __init__(self, model: GPT, rules: Rules, settings: Settings | None,
                 progress: Progress | None = None, source: Source | None = None):
        self.model, self.rules, self.settings = model, rules, settings
        self.progress = progress or Progress(settings.steps if settings else 0)
        self._source = source  # None: opened when it is first asked for
        self.teacher: GPT | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.written: list[Text] = []  # by the student, for the next steps
        self.saved_moments: dict | None = None  # the optimizer's, from a checkpoint
        self.saved_data = ""  # the digest of the text that it was trained on
        self.resumed, self.stop = False, []  # stop: signals that came
        self.resumable = True  # False: its loop is not train.py's, so --resume would be another one
        self.line: dict[str, float] = {}  # what metrics.jsonl will say of this step
        self.also_measure = dict  # () -> more numbers for an evaluation
        self.meaning: dict[str, str] = {}  # of thoughts by number, where lab.probe has counted

    @property
    def source(self) -> Source:
        """Where its text comes from."""
        if self._source is None:
            s = self.settings
            self._source = open_source(s.data, self.model.text_ids, s)
        return self._source

    @property
    def is_task(self) -> bool:
        """Does each prompt say for itself where thoughts may stand?"""
        return self.rules.think_after == []

    @property
    def out(self) -> Path:
        return Path(self.settings.out)

    @property
    def stage(self) -> int:
        """Of the curriculum; 0 without one."""
        on = self.settings.curriculum != "off" and self.source.stages
        return self.progress.stage if on else 0

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.model.text_ids, self.model.config.think_vocab, self.rules.continuous)

    def luck(self, purpose: str, split: bool = True) -> Luck:
        """This step's random numbers. split: of this process's rows; else of all rows."""
        share = (RANK, WORLD) if split else (0, 1)
        return Luck(self.settings.seed, self.progress.step, purpose, *share)

    def own_rows(self, text: Text) -> Text:
        """This process's share of the contexts."""
        R = len(text.ids) // WORLD
        return text if WORLD == 1 else text.each(lambda x: x[RANK * R:(RANK + 1) * R])

    def autocast(self):
        """Matrix products in the run's dtype."""
        if self.settings.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.model.device.type, self.settings.dtype)

    def check(self, load: Callable[[str], GPT]) -> None:
        """Load the teacher. Do it, model, text and rules fit together? Raises ValueError."""
        s, model, source = self.settings, self.model, self.source
        # one language
        if model.text_ids != source.text_ids:
            raise ValueError(f"--model {s.model} does not speak the language of --data {s.data}: "
                             "try --approach stream with a new --model scratch")
        if source.text_ids is None:
            Tokenizer().check(model.config.vocab_size)
        # one vocabulary: the teacher reads the student's ids
        if s.teacher is not None:
            self.teacher = load(s.teacher).to(s.device).requires_grad_(False)
            if (self.teacher.text_ids, self.teacher.config.vocab_size) != (
                    model.text_ids, model.config.vocab_size):
                raise ValueError(f"--teacher {s.teacher} has another vocabulary than --model "
                                 f"{s.model}: it cannot judge its text")
        # the longest row fits the context of both
        longest = source.longest(s, self.rules.budget)
        if longest > min(m.config.n_ctx for m in (model, self.teacher) if m is not None):
            raise ValueError(f"{source.whose_longest(s)} and thoughts can make {longest} places, "
                             "more than the model's context: lower --new_tokens, --budget or "
                             "--max_thoughts")
        # is the text long enough? better now than after an hour
        source.text(s, 0, 0)
        P, L = s.prompt_tokens, s.prompt_tokens + s.new_tokens
        source.take(1, L, seeded(0, 0, "eval"), P, held_out=True)

    # The clock

    def steps(self):
        """Yields each step's number. Between two of them it logs, evaluates and saves. A step has
        to call `update`, which counts it, and `note`, which says what it was.

        Raises OSError where a file can't be written. Ends the program with 128 + the signal's
        number where one came.
        """
        p, chief = self.progress, RANK == 0  # the chief writes log, checkpoint and bar
        self.stop = ask_to_stop()
        if self.model.device.type == "cuda":  # for products in place, which autocast leaves alone
            torch.set_float32_matmul_precision("high")
        if chief:
            self.begin()
        bar = tqdm(total=p.end, initial=p.step, desc=self.settings.approach, disable=not chief)
        stopping = False
        while p.step < p.end and not stopping:
            step = p.step
            yield step
            stopping = asked_to_stop(self.stop, self.model.device)
            if chief:
                self.log.write("step", step, self.line)
                self.notice_dead()
                self.look_and_save(stopping)
            bar.total = p.end
            shown = ["reward", "spread", "entropy"] + ["stage", "right"] * (self.stage > 0)
            shown += ["skipped"] * (p.skipped > 0)
            bar.set_postfix({k: f"{self.line[k]:.3g}" for k in shown}, refresh=False)
            bar.update()
        bar.close()
        if chief and p.step == p.end:
            self.close()
        if WORLD > 1:
            dist.barrier()  # all leave together
            dist.destroy_process_group()  # ends gloo's threads, which could abort Python's end
        if p.step < p.end:
            go_on = f"; go on with: python {script('train.py')} --resume --out {typed(self.out)}"
            print(f"stopped after step {p.step}{go_on if self.resumable else ''}")
            sys.exit(128 + (self.stop or [signal.SIGTERM])[0])

    def begin(self) -> None:
        """The folder before the first step: checkpoint, settings, log, a first evaluation."""
        if not self.resumed:
            self.out.mkdir(parents=True, exist_ok=True)
            set_aside(self.out)
            # before the log begins: at any moment the two belong to one run
            save(self.out / "ckpt.pt", self.whole())
        text = as_json(asdict(self.settings), indent=1) + "\n"
        write_whole(self.out / "settings.json", text.encode())
        self.log, self.saved_at = Log(self.out, self.progress.step), time.time()
        self.save_seconds = 0.0  # that the last checkpoint took
        if not self.log.evals:
            self.measure(whole=True)
        if self.stage and not self.resumed:
            two = self.source.by_row and self.source.stages > self.source.levels
            print(f"stage 1 of {self.source.stages}, often 100 to 300 steps: thoughts get a first "
                  "meaning, while the bar's `right` rises to 1"
                  + ". In this stage answers see all of their thoughts, later the window's" * two,
                  flush=True)

    def load_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the optimizer the checkpoint's, where there is one. Raises ValueError where they are
        another model's."""
        if self.saved_moments is None:
            return
        try:
            optimizer.load_state_dict(self.saved_moments)
            # torch itself looks at the number of parameters alone
            fits = all(x["exp_avg"].shape == p.shape for p, x in optimizer.state.items())
        except (AttributeError, KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError("the checkpoint's optimizer does not fit its weights")

    def update(self, loss: float, entropy: float) -> Update:
        """One step of the optimizer from the gradients that are there.

        Raises FloatingPointError after 10 steps in a row that were not finite.
        """
        p, s = self.progress, self.settings
        loss, entropy = sum_over_processes(self.model, loss, entropy)
        # rates rise in the first steps after birth, and fall in the last fifth of the run
        warmup = 50 if s.from_scratch else 15
        factor = min(1.0, (p.step + 1) / warmup)
        factor *= min(1.0, 5 * (1 - p.step / p.end) + 0.05)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0).item()
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
            p.in_a_row = 0
        else:  # one NaN would spoil weights and moments for good, so this step is left out
            p.skipped, p.in_a_row = p.skipped + 1, p.in_a_row + 1
        if p.in_a_row == 10:
            raise FloatingPointError(f"10 steps in a row, up to step {p.step}, had no finite loss "
                                     "or gradient: try a lower --lr and --think_lr")
        self.optimizer.zero_grad(set_to_none=True)
        p.step += 1
        return Update(loss, entropy, norm)

    def note(self, text: Text, score: Score, credit: Credit, update: Update) -> None:
        """What metrics.jsonl says of this step (docs/METRICS.md)."""
        paying, r = all_rows(text.pays).sum().item(), all_rows(score.r)
        # padding counts for nothing
        real = torch.ones_like(r) if text.real is None else all_rows(text.real)
        self.line = {
            "reward": (r.sum() / max(paying, 1)).item(), "loss": update.loss,
            "spread": sibling_spread(all_rows(credit.returns), self.settings.samples, real),
            "frac_reward_zero_std": same_reward(r, self.settings.samples),
            "entropy": update.entropy / max(credit.thoughts, 1),
            "thoughts": credit.thoughts / real.sum().item(), "grad_norm": update.norm,
            "stage": self.progress.stage, "right": self.progress.accuracy,
            "skipped": self.progress.skipped}

    def stuck(self, right: float) -> bool:
        """Is it `patience` steps since more of this stage's questions were right? right: now."""
        p = self.progress
        if right > p.best:
            p.best, p.in_stage = right, 0
        return p.in_stage >= self.source.patience > 0

    def next_stage(self, right: float) -> None:
        """Up by one. right: the share of this stage's questions; too few of them are a line."""
        p = self.progress
        if right <= self.source.enough:
            tqdm.write(f"stage {p.stage} ends: for {p.in_stage} updates no more than {p.best:.0%} "
                       "were right. Easier rows as level 1 may help")
        p.stage, p.best, p.in_stage = p.stage + 1, 0.0, 0

    def notice_dead(self) -> None:
        """Say, each time it begins, that nothing is learned."""
        s, p = self.settings, self.progress
        # filler and vectors are not sampled: their siblings never differ
        dead = (self.line["thoughts"] and s.thoughts == "tokens" and s.samples > 1
                and self.line["spread"] < DEAD_SPREAD)
        p.dead = p.dead + 1 if dead else 0
        if p.dead == DEAD_STEPS:
            tqdm.write(f"hint: for {DEAD_STEPS} steps siblings have not differed (spread < "
                       f"{DEAD_SPREAD}), so thoughts learn nothing. Does the text need them? Try "
                       "a narrower --window, another --seed, or a base that can't do without")

    def measure(self, whole: bool) -> None:
        """An evaluation: its line, and samples.html. whole: at a run's start and end, with more
        questions."""
        result, rows = evaluate(self.model, self.source, self.rules, self.settings, self.teacher,
                                32 if whole else 8)
        self.log.write("eval", self.progress.step, result | self.also_measure())
        samples = [self.tokenizer.show(row, prompt, "html") for row, prompt in rows]
        page = html_page(samples, f"step {self.progress.step}")
        write_whole(self.out / "samples.html", page.encode("utf-8", "replace"))

    def look_and_save(self, stopping: bool) -> None:
        """An evaluation where one is due; a checkpoint there, at the end, and once a minute."""
        p, s, last = self.progress, self.settings, None
        due = p.step % s.eval_every == 0 or p.step == p.end
        sound = not p.in_a_row  # spoilt weights must not replace a good checkpoint
        if due:
            self.measure(whole=p.step == p.end)
            last = self.log.evals[-1]
            sound = math.isfinite(last["nats_without_thoughts"])
            # (p_think plays no part where thinking is forced)
            hidden = {"seconds", "p_think"} if s.think == "forced" else {"seconds"}
            numbers = {k: v for k, v in last.items() if isinstance(v, float) and k not in hidden}
            tqdm.write(f"step {p.step}: " + ", ".join(f"{k} {v:.3f}" for k, v in numbers.items()))
        # this one first: a run that goes on from ckpt.pt does not see this step again
        if sound and s.keep_every and p.step % s.keep_every == 0:
            save(self.out / f"ckpt_{p.step:06}.pt", self.as_saved())
        late = time.time() - self.saved_at > max(SAVE_SECONDS, SAVE_TIMES * self.save_seconds)
        if sound and (due or stopping or late):
            start = time.time()
            save(self.out / "ckpt.pt", self.whole())
            self.saved_at, self.save_seconds = time.time(), time.time() - start

    def as_saved(self) -> dict:
        """What sampling needs: a third of the size."""
        return as_checkpoint(self.model) | {"settings": asdict(self.settings),
                                            "rules": asdict(self.rules),
                                            "progress": asdict(self.progress),
                                            "data": self.source.digest}

    def whole(self) -> dict:
        """What --resume needs as well: the optimizer, and text that is written and not used yet."""
        if not self.resumable:
            return self.as_saved()
        return self.as_saved() | {"optimizer": self.optimizer.state_dict(),
                                  "written": [vars(text) for text in self.written]}

    def a_prompt(self) -> str:
        """A held-out prompt of a task, or eight tokens of held-out text. "" on cups and for a model
        that is no run: sample.py has one. Raises ValueError for a text that is no file here."""
        if self.is_task:
            return self.source.a_prompt()
        if self.settings is None or read_spec(self.settings.data) is not None:
            return ""
        if self._source is None and not Path(self.settings.data).is_file():
            raise ValueError(f"this run's text, {self.settings.data}, is no file here to take a "
                             "prompt from: name one with --prompt")
        text_ids, tokenizer = self.source.text_ids, self.source.tokenizer
        for i in range(100):  # some begin in the middle of a letter, or are other pieces alone
            ids = self.source.take(1, 8, seeded(0, i, "eval"), held_out=True)[0].tolist()
            text = tokenizer.decode(ids).strip(" ")
            with contextlib.suppress(ValueError):  # of a text that is not in the language
                if text and tokenizer.encode(text) and not set(ids) & {*end_of_answer(text_ids)}:
                    return text
        return ""

    def close(self) -> None:
        """The curves, and the last lines that a run prints."""
        draw_curves(self.out, self.source.of)
        forced = self.settings.think == "forced"
        print_report(self.log.evals[0], self.log.evals[-1], forced, self.source.of)
        if self.resumable and 0 < self.stage < self.source.stages:
            print(f"it ended in stage {self.stage} of {self.source.stages}; to go on\n  python "
                  f"{script('train.py')} --resume --steps {2 * self.progress.end} --out "
                  f"{typed(self.out)}")
        prompt = f" --prompt {typed(text)}" if (text := self.a_prompt()) else ""
        print(f"{time.time() - self.log.t0:.0f} s; {self.out}/ holds {', '.join(FILES[:5])}; now "
              f"try\n  python {script('sample.py')} --checkpoint {typed(self.out)}{prompt}")
        if (self.settings.thoughts == "tokens" and self.rules.persist and self.source.says
                and Path.cwd() == ROOT):  # there python finds `lab`
            print("and, for a page on which thoughts answer to the mouse,\n  python -m "
                  f"lab.experiments report --checkpoint {typed(self.out)} "
                  f"--out {typed(self.out / 'report.html')}")


def open_run(path: str | Path, plain: bool = False) -> Run:
    """A checkpoint of train.py, or its folder, under the rules it was trained with.

    plain: a model that is no run is taken as well; it never thinks. Raises ValueError, one line.
    """
    path = Path(path)
    path = path / "ckpt.pt" if path.is_dir() and (path / "ckpt.pt").exists() else path
    if not path.exists():
        raise ValueError(f"there is no {path}: a run of train.py leaves its checkpoint as ckpt.pt "
                         "in its folder, by default out/")
    # (a folder, or a file in that format, is somebody else's model)
    saved = {} if path.is_dir() or path.suffix in (".safetensors", ".json") else read_weights(path)
    old = "args" in saved  # format 2
    if "rules" not in saved or not {"args", "settings"} & saved.keys():
        if not plain:
            raise ValueError(f"{path} is a model, but not the checkpoint of a run of train.py, "
                             "with its rules")
        return Run(load(path), Rules("never"), None)
    settings = from_dict(saved["args" if old else "settings"], path)
    progress = dict(saved.get("state" if old else "progress", {}))
    for gone in ("born", "attempt"):  # of runs that could begin again
        progress.pop(gone, None)
    try:
        rules, progress = Rules(**saved["rules"]), Progress(**{"end": settings.steps, **progress})
        written = [Text(**text) for text in saved.get("written", [])]
    except TypeError as e:
        raise ValueError(f"{path} was made by another version of train.py ({e})") from e
    run = Run(from_checkpoint(saved, path), rules, settings, progress)
    # without its progress, or settings that are all there, a run can't go on
    complete = "progress" in saved and asdict(settings).keys() <= saved["settings"].keys()
    run.saved_moments = saved.get("optimizer") if complete else None
    run.saved_data = saved.get("data", "")
    run.written = written
    return run


def reopen(typed: dict) -> Run:
    """The run in --out, to go on with under what was typed; its optimizer is yet to be made.
    Raises ValueError."""
    out = Path(typed.get("out", "out"))
    if not (out / "ckpt.pt").exists():
        raise ValueError(f"nothing to resume: there is no {out}/ckpt.pt")
    run = open_run(out)
    s, p = run.settings, run.progress
    if run.saved_moments is None:
        raise ValueError(f"{out}/ckpt.pt can be sampled, but not resumed: it has no optimizer, or "
                         "is of an older version")
    steps = typed.get("steps", p.end)
    if steps < max(p.step, 1):
        raise ValueError(f"--steps {steps}: the run that is to go on has made {p.step} steps "
                         "already")
    free, device, compile_ = {"steps", "device", "out", "resume"}, s.device, s.compile
    if typed.get("device", "auto") != "auto" or s.device == "cuda":
        device = choose_device(typed.get("device", s.device))
    if device != s.device:  # what is compiled there need not be here
        free, compile_ = free | {"compile"}, typed.get("compile", "auto")
        print(f"this run was on {s.device}, and goes on on {device}")
    for name, value in typed.items():  # said again, a setting may only be what it was
        if name not in free and not means(name, value, getattr(s, name)):
            raise ValueError("--resume goes on with the settings of its run, except --steps and "
                             f"--device: it had --{name} {getattr(s, name)}, not {value}")
    run.settings = replace(s, out=str(out), steps=typed.get("steps", s.steps), processes=WORLD,
                           device=device, compile=compile_)
    check(run.settings)  # can the contexts be shared by these processes?
    run.settings = replace(run.settings, compile=choose_compile(run.settings))
    # --steps N is wanted: no curriculum ends that run sooner
    p.wanted, p.end = p.wanted or "steps" in typed, steps
    run.resumed = True
    if (out / "metrics.jsonl").is_dir():
        raise ValueError(f"{out}/metrics.jsonl is a folder: the log of this run belongs there")
    try:
        changed = run.saved_data not in ("", run.source.digest)
    except ValueError as e:
        raise ValueError(f"this run began with {s.data}, which can't be read as it was then: {e}"
                         ) from e
    run.check(load)
    if changed:
        print(f"{s.data} has changed since this run began: it goes on with other text")
    run.model.to(device)
    run.written = [text.to(device) for text in run.written]
    if p.step == p.end:
        print(f"this run has made all of its {p.step} steps: nothing is left to do, but --resume "
              "--steps N goes on to step N")
    return run


def load_run(path: str | Path) -> Run:
    """A run, or a plain GPT-2, which never thinks. With what its thoughts mean, where lab.probe has
    written that next to it. Raises ValueError, one line."""
    run = open_run(path, plain=True)
    run.meaning = probe_of(path).get("meaning", {})
    return run


def folder_of(checkpoint: str | Path) -> Path:
    """Of a run, which may be named by its checkpoint or by its folder."""
    path = Path(checkpoint)
    return path if path.is_dir() else path.parent


def probe_of(checkpoint: str | Path) -> dict:
    """What lab.probe found of a run: {} where it has not looked. Raises ValueError where it has not
    ended."""
    path = folder_of(checkpoint) / "probe.json"
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as e:
        raise ValueError(f"{path} is not whole: python -m lab.probe --checkpoint {checkpoint} "
                         "writes it, once it ends") from e


def same_reward(r: Tensor, G: int) -> float:  # [B * G, S]
    """The share of contexts whose siblings all earned the same, to a thousandth of a nat."""
    total = r.sum(1).view(-1, G)
    return (total.amax(1) - total.amin(1) < 1e-3).float().mean().item()


class Log:
    """metrics.jsonl, open as long as the run goes on. evals: all its evaluations so far."""

    def __init__(self, out: Path, step: int):
        """step: how many the checkpoint has made. Lines after that are dropped, as these steps are
        made again."""
        self.path, self.t0 = out / "metrics.jsonl", time.time()
        done = {"step": step, "eval": step + 1}  # an evaluation is logged before it is saved
        there = read_log(self.path) if step else []
        kept = [x for x in there if x["step"] < done[x["kind"]]]
        if step and self.path.exists():
            before = self.path.read_bytes()
            # half a line at the end is what a killed run wrote last
            whole = [x for x in before.split(b"\n")[:-1] if x.strip()]
            if (others := len(whole) - len(there)) > 0:
                aside = self.path.with_suffix(".old")
                write_whole(aside, before)
                print(f"{self.path} had {others} line(s) that no run writes: they are in {aside}")
        # as with checkpoints: at no moment is there less than before
        write_whole(self.path, "".join(as_json(x) + "\n" for x in kept).encode())
        self.evals = [x for x in kept if x["kind"] == "eval"]

    def write(self, kind: str, step: int, values: dict) -> None:
        """One line. The file is closed each time, so a run that is killed has lost none."""
        line = {"kind": kind, "step": step, "seconds": time.time() - self.t0, **values}
        with open(self.path, "a") as f:
            f.write(as_json(line) + "\n")
        self.evals += [line] if kind == "eval" else []


NEEDED = {"step": ("reward", "spread", "entropy"), "eval": ("nats_without_thoughts",)}


def read_log(path: Path) -> list[dict]:
    """The lines of a log that a run wrote, whole. Half a line is the last thing that a killed run
    wrote, and other tools add lines of theirs. null, where there was no number, becomes NaN."""
    found = []
    if not path.exists():
        return []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError,
                                 RecursionError):
            x = {k: math.nan if v is None else v for k, v in json.loads(text).items()}
            numbers = [x["step"], *(x[k] for k in NEEDED[x["kind"]])]
            if type(x["step"]) is int and all(isinstance(n, int | float) for n in numbers):
                found.append(x)
    return found


def html_page(samples: list[str], title: str) -> str:
    """Samples made by show(style="html") -> one page that needs no other file."""
    # a class for each kind of piece that `show` makes
    colours = "".join(f".{kind}{{color:{colour}}}" for kind, colour in CSS.items())
    legend = ('<p><span class="prompt">prompt</span>  <span class="text">own text</span>  '
              '<span class="think">&lt;thought&gt;</span></p>')
    return ('<!doctype html><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(title)}</title><style>{colours}"
            "body{font:16px/1.7 monospace;max-width:60em;margin:2em auto;padding:0 1em}"
            "p{white-space:pre-wrap;border-bottom:1px solid #ddd;padding-bottom:1em}"
            f".think{{font-size:80%}}</style><h1>{html.escape(title)}</h1>{legend}"
            + "".join(f"<p>{sample}</p>" for sample in samples) + "\n")


def draw_curves(out: Path, of: str) -> None:
    """curves.png from metrics.jsonl."""
    plt, lines = pyplot(), read_log(out / "metrics.jsonl")
    steps, evals = ([x for x in lines if x["kind"] == kind] for kind in ("step", "eval"))
    figure, axes = plt.subplots(2, 2, figsize=(11, 7))
    panels = {"reward": "reward (nats per paying token)",
              "spread": "spread between siblings (0: nothing to learn from)",
              "entropy": "entropy of thoughts (nats)"}
    for axis, (key, title) in zip(axes.flat, panels.items()):
        axis.plot([x["step"] for x in steps], [x[key] for x in steps], lw=1)
        axis.set(title=title, xlabel="step")
    last, axis = evals[-1], axes[1, 1]
    if right := last.get(f"accuracy_by_{of}"):
        levels = range(1, len(right) + 1)
        for x in (evals[0], last):
            axis.plot(levels, x[f"accuracy_by_{of}"], ".-", label=f"step {x['step']}")
        if another := last.get(f"accuracy_another_by_{of}"):
            axis.plot(levels, another, ".:", label="another's thoughts")
        axis.set(title=f"answers right, by {of}", ylim=(0, 1.03))
        axis.legend()
    else:
        axis.plot([x["step"] for x in evals], [x["nats_without_thoughts"] for x in evals], ".-")
        axis.set(title="held-out nats per token, without thoughts", xlabel="step")
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=110)
    plt.close(figure)


# The folder of a run, and who stops it

def set_aside(out: Path) -> None:
    """All that this run would write over moves to old1, old2, ... in the folder, so nothing is
    lost, whoever made it. A run of ours that made no step does not count."""
    names = [FILES[0], *sorted(x.name for x in out.glob("ckpt_*.pt")), *FILES[1:]]
    there = [name for name in names if (out / name).exists()]  # (a link to no file is a wish)
    parts = [x.name for x in out.glob("ckpt*.part") if not is_without_steps(x)]
    if not parts and (not there or is_new(out, there)):
        return
    old = next(x for i in itertools.count(1) if not os.path.lexists(x := out / f"old{i}"))
    old.mkdir()
    for name in there + parts:
        file = out / name
        if file.is_symlink():  # a relative one would lead nowhere from there
            (old / name).symlink_to(os.path.realpath(file))
            file.unlink()
        else:
            file.rename(old / name)
    print(f"{out}/ held a run already (--resume would have gone on with it), or files of its "
          f"names: all of it is now in {old}/", flush=True)


def is_new(out: Path, there: list[str]) -> bool:
    """Is all that is there a run of ours before its first step?"""
    log = out / "metrics.jsonl"
    lines = log.read_bytes().splitlines() if log.is_file() else []
    return (there[0] == FILES[0] and not [x for x in there if x.startswith("ckpt_")]
            and is_without_steps(out / FILES[0])
            and ["eval"] * len(lines) == [x["kind"] for x in read_log(log)])


def is_without_steps(file: Path) -> bool:
    """Is this a checkpoint from before a run's first step, or not even half of one?"""
    try:
        return read_weights(file)["progress"]["step"] == 0
    except (ValueError, KeyError, TypeError):
        return file.suffix == ".part"


def take_folder(s: Settings, folder: contextlib.ExitStack) -> None:
    """--out is this run's until the end of `folder`. Raises ValueError where it can't be."""
    out = Path(s.out)
    make_folder(out)
    folder.enter_context(lock_folder(out))
    if s.teacher and is_own(s.teacher, out):
        raise ValueError(f"{s.teacher} is the judge of this run, which would write over it: "
                         "choose another --out")


@contextlib.contextmanager
def lock_folder(out: Path):
    """While it lasts, the folder belongs to this run: two would spoil each other's log. The system
    lets go with the process, also at kill -9. Raises ValueError where another run has it. Windows
    and some network file systems have no such lock."""
    if os.name != "posix" or RANK:
        yield
        return
    import fcntl
    folder = os.open(out, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # of a file system without locks
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise ValueError(f"{out}/ is in use by a run that goes on: choose another --out, "
                                 "or wait until it ends") from e
        yield
    finally:
        os.close(folder)


def is_own(path: str, out: Path) -> bool:
    """Is this a file that a run in `out` writes its checkpoints to, or their folder?"""
    file = Path(path) / "ckpt.pt" if Path(path).is_dir() else Path(path)
    return any(x.parent.resolve() == out.resolve() and x.match("ckpt*.pt")
               for x in (file, file.resolve()))


def ask_to_stop() -> list[int]:
    """-> a list that gets the number of a signal, Ctrl-C or SIGTERM. The run looks at it after each
    step, saves and ends. A second signal ends the process at once."""
    asked, signals = [], (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, _) -> None:
        asked.append(number)
        for s in signals:
            signal.signal(s, signal.SIG_DFL)
    for s in signals:
        if signal.getsignal(s) is not signal.SIG_IGN:  # what a shell has it ignore stays ignored
            signal.signal(s, ask)
    return asked


def guarded(p, begin: Callable, go: Callable) -> None:
    """A command that trains: go(begin(folder)). p: the parser, which says errors in one line.
    Exit codes: command.py; 130 and 143 after all is saved."""
    with contextlib.ExitStack() as folder:
        try:
            run = begin(folder)
        except (ValueError, OSError) as e:
            p.error(str(e))
        except (RuntimeError, MemoryError) as e:
            if not is_short_of_memory(e):
                raise
            p.error(f"such a model or its data do not fit into memory ({reason(e)})")
        except KeyboardInterrupt:
            sys.exit(130)
        try:
            return go(run)
        except (OSError, FloatingPointError) as e:
            broken = str(e)
        except (RuntimeError, MemoryError) as e:
            if not is_short_of_memory(e):
                raise
            broken = ("a step does not fit into memory: lower --micro_batch or --prompts "
                      f"({reason(e)})")
        # by now the bar is gone, and has ended its line
        saved = isinstance(run, Run) and (run.out / "ckpt.pt").exists() and run.resumable
        sys.exit(f"{p.prog}: {one_line(broken)}"
                 + ("; --resume goes on from the last checkpoint" if saved else ""))


def reason(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


def asked_to_stop(stop: list[int], device) -> bool:
    """Did a signal come, to any of the processes?"""
    return bool(all_rows(torch.tensor([bool(stop)], device=device)).any()) if WORLD > 1 else bool(
        stop)


def join_processes() -> None:
    """torchrun: find the others. Raises ValueError where there are fewer GPUs than processes, or
    where its variables do not fit together."""
    if processes() == (1, 0):
        return
    gpus, here = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus and here >= gpus:
        raise ValueError("torchrun started more processes than there are GPUs: "
                         f"--nproc_per_node={gpus} at most")
    if gpus:
        torch.cuda.set_device(here)
    # Adam would import it anyway. Its functions' default arguments hold the group that there is at
    # its import: the threads of that group would outlive `destroy_process_group`
    from torch.distributed import nn  # noqa: F401
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    if RANK:  # the first process alone speaks
        sys.stdout = open(os.devnull, "w")


def sum_over_processes(model: GPT, *numbers: float) -> list[float]:
    """Everybody's gradients, in place, and these numbers, summed. DistributedDataParallel would
    average; here each term is divided by the whole batch's count already."""
    if WORLD == 1:
        return list(numbers)
    total: Tensor = torch.tensor(numbers, device=model.device)
    for x in [*(p.grad for p in model.parameters() if p.grad is not None), total]:
        dist.all_reduce(x)
    return total.tolist()
