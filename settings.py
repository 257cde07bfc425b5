"""The settings of a run: what they are, their defaults in each preset, and what is refused.

`Settings` is one frozen dataclass, a field for each flag of train.py, with its help next to it. Its
defaults are those of text. PRESETS says all that differs elsewhere. `resolve` puts together what
was typed, the presets and what follows from them. What does not fit together is a ValueError of one
line, before a model is built.

Left out on purpose: files of settings and environment variables. A run is the line that started it,
and its out/settings.json is the whole list. Knows command.py, model.py and task.py.
"""
import argparse
import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from command import Parser, place
from model import PICO, SIZES
from task import ENDS, THINK_AFTER, fitted, kind_of, read_spec, write_spec


def flag(default, help: str, **more):
    """A field that is a flag. more: choices, type."""
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class Settings:
    """All settings of a run. A name that is not here is an AttributeError, not a default."""
    approach: str = flag("teacher", "who pays for a thought: a teacher that reads the model's own "
                         "text, the tokens of a given stream, or the next token alone",
                         choices=["teacher", "stream", "next_token"])
    thoughts: str = flag("tokens", "tokens: N rows; continuous: the hidden state is fed back; "
                         "filler: one learned row; none: no thoughts",
                         choices=["tokens", "continuous", "filler", "none"])
    model: str = flag("gpt2", f"{', '.join([*PICO, *SIZES])}, a path, or scratch:2x64 for a new one"
                      " of 2 layers and width 64; bytes:2x64 reads the file byte by byte")
    teacher: str | None = flag("gpt2", "as --model; for --approach teacher")
    data: str = flag("webtext", 'webtext, "webtext train" (1 GB), a .txt or .jsonl file of text, a '
                     '.jsonl file of prompts and answers, or "cups m=5 idle=0.4"; cups takes m=, '
                     "balls=one|all, moves=mixed|turns, idle=, swaps=")
    eval_data: str | None = flag(None, "a task: held-out rows; else the last 5 % of each level")
    think_after: str = flag("anywhere", "where thoughts may stand. On a text: anywhere, sentence, "
                            "line, with bytes also word. On a task: steps, end. On both: after "
                            "any TEXT, on a text after tokens that end in it")
    # thoughts
    think_vocab: int = flag(2048, "N, thinking rows")
    think: str = flag("free", "may the model choose when to think?", choices=["free", "forced"])
    think_prior: float = flag(0.1, "mean p_think at birth")
    max_thoughts: int = flag(1, "K, thoughts per slot; next_token on a text with a window: the "
                             "tokens that a branch reads again, one for each thought")
    budget: int = flag(32, "thoughts per row")
    think_cost: float = flag(0.0, "what a thought costs, in nats")
    window: int = flag(0, "how far back is seen, besides the last thought: tokens on a text and "
                       "in branches, tokens and thoughts on cups, steps on a task; 0: all")
    # rollouts
    prompts: int = flag(8, "B, contexts per step")
    samples: int = flag(4, "G, siblings per context")
    prompt_tokens: int = flag(64, "P, real text that a rollout starts from")
    new_tokens: int = flag(64, "S, text tokens that follow")
    micro_batch: int = flag(0, "rows per gradient forward: less memory, same gradient; 0: all")
    # learning
    steps: int = flag(1000, "updates")
    lr: float = flag(1e-5, "learning rate of GPT-2's own parameters")
    think_lr: float = flag(1e-3, "learning rate of the thinking rows")
    entropy: float = flag(0.5, "target entropy of thoughts, as a share of log N")
    gamma: float = flag(0.95, "discount per text token")
    baseline: str = flag("loo", "what a return is compared with",
                         choices=["loo", "batch", "none"])
    reward: str = flag("kl", "teacher: kl, exact, all siblings think in one text; sampled: the "
                       "teacher's log-prob of what was said, each sibling its own text",
                       choices=["kl", "sampled"])
    answer_grad: str = flag("on", "given text: train p_text of the paying tokens directly",
                            choices=["on", "off"])
    curriculum: str = flag("off", "rounds of one move first, longer ones once those are right; on, "
                           "where a task has levels",
                           choices=["on", "off"])
    # the run
    seed: int = flag(0, "of everything that is drawn")
    eval_every: int = flag(100, "steps between evaluations, each with a checkpoint")
    keep_every: int = flag(0, "steps between checkpoints that stay; 0: only the last one does")
    device: str = flag("auto", "where it runs", choices=["auto", "cpu", "cuda", "mps"])
    compile: str = flag("auto", "torch.compile for the rollout", choices=["auto", "on", "off"])
    out: str = flag("out", "folder for checkpoint, log and pictures")
    # follow from the others
    reread: int = 0  # next_token: tokens that a branch reads on from thought to thought
    processes: int = 1  # torchrun's

    @property
    def dtype(self) -> torch.dtype:
        """Of matrix products: bfloat16 on a GPU that has it."""
        # emulated, as on a T4, it would be slower than float32
        half = self.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if half else torch.float32

    @property
    def from_scratch(self) -> bool:
        return is_new(self.model)


FLAGS = {f.name: f for f in fields(Settings) if f.metadata}
PATHS = {"out": place, "model": place, "teacher": place, "data": os.path.expanduser,
         "eval_data": os.path.expanduser}  # `~` is home
# A window, because a model that sees all text does not need thoughts. While they are noise they
# change nothing, so siblings get equal rewards and nothing is learned.
PRESETS = {
    "cups": dict(model="pico", teacher="pico-teacher", data="cups", think="forced", window=5,
                 lr=1e-3, think_lr=1e-3, samples=8, gamma=0.9, prompts=16,
                 prompt_tokens=17, new_tokens=48, budget=24, think_prior=0.5, steps=1500,
                 eval_every=750, curriculum="on"),
    "cups, stream": dict(model="scratch:1x64", new_tokens=32, budget=16,
                         think_lr=2e-3, steps=1600, eval_every=800),
    # without rereading thoughts stay unused: one layer answers short rounds directly, and
    # siblings do not differ. K is one thought to go back, and one for each move of three
    "cups, next_token": dict(model="scratch:1x64", new_tokens=32, window=7,
                             think_lr=2e-3, max_thoughts=4),
    "text, next_token": dict(max_thoughts=4, window=0),
    # where one token is in sight, a thought has much to say; with two it repeats what is seen. The
    # reader needs text more than siblings
    "text, scratch": dict(approach="stream", think="forced", window=1, think_vocab=64, lr=3e-3,
                          think_lr=6e-3, entropy=0.1, gamma=0.9, samples=2, prompts=32,
                          prompt_tokens=8, steps=600),
    # (window, budget and lengths follow from the file: task.fitted.) A row that is seldom thought
    # is read right by answers, and wrongly by the next thought. Of 2,048 many are seldom thought
    "task": dict(approach="stream", model="scratch:1x64", think="forced", think_after="steps",
                 think_vocab=64, think_prior=0.5, gamma=0.97, steps=1500, eval_every=500),
    "task, scratch": dict(lr=1e-3, think_lr=2e-3, prompts=16, samples=8),
    "task, next_token": dict(max_thoughts=4),
}
LEAST = dict(prompts=1, samples=1, prompt_tokens=1, new_tokens=1, steps=1, micro_batch=0,
             eval_every=1, max_thoughts=1, budget=0, window=0, seed=0, lr=0, think_lr=0, entropy=0,
             gamma=0, think_cost=-1e3, think_prior=0, keep_every=0)
MOST = dict(gamma=1, entropy=1)
ONLY = {  # flags that mean something in one setting alone; anywhere else they are refused
    "teacher": "--approach teacher", "reward": "--approach teacher", "gamma": "thoughts that stay",
    "budget": "thoughts that stay", "answer_grad": "a given text",
    "curriculum": "--data cups or a task",
    "eval_data": "a task", "think_after": "a task or a text"}


def parser() -> Parser:
    """All flags of train.py. What was not typed is absent from the result."""
    p = Parser(description="Teach GPT-2 to think in tokens of its own.",
               allow_abbrev=False, argument_default=argparse.SUPPRESS,
               epilog="Defaults are those of text; 'cups' and so on: what differs there. On cups "
                      "in harder worlds --steps is 12000 at most.")
    for name, f in FLAGS.items():
        kind = PATHS.get(name, f.type if f.type in (int, float) else str)
        p.add_argument(f"--{name}", type=kind, choices=f.metadata.get("choices"),
                       help=f"{f.metadata['help']} [{defaults(name)}]".replace("%", "%%"))
    p.add_argument("--resume", action="store_true", help="go on from OUT/ckpt.pt, as it was, "
                   "but for --steps and --device")
    return p


def defaults(name: str) -> str:
    """A flag's default, and what it is in each preset that has another one."""
    there = [f"{preset}: {values[name]}" for preset, values in PRESETS.items() if name in values]
    return "; ".join([str(FLAGS[name].default), *there])


def resolve(typed: dict) -> Settings:
    """The settings of a new run, from the flags that were typed. Raises ValueError."""
    device = choose_device(typed.get("device", "auto"))
    data = typed.get("data", "webtext" if device == "cuda" else "cups")
    if typed.get("think_after") == "":
        raise ValueError("--think_after is empty: leave it out, or name a text")
    spec, kind = read_spec(data), kind_of(data)  # before a model is downloaded for it
    values = PRESETS.get(kind, {})
    for name in preset_names(kind, typed.get("model", values.get("model", "gpt2"))):
        values = values | PRESETS.get(name, {})
    approach = typed.get("approach", values.get("approach", "teacher"))
    values = values | PRESETS.get(f"{kind}, {approach}", {})
    if spec is not None:
        values |= of_this_game(spec, approach, typed)
        limit_rounds(spec, {"new_tokens": values["new_tokens"]} | typed)
        data = write_spec(spec)
    values |= {"data": data, "device": device, "processes": processes()[0]}
    # "auto" is what is chosen where nothing is typed; a spec has been completed
    typed = {k: v for k, v in typed.items() if v != "auto"} | {"data": data}
    s = Settings(**(values | typed))
    if kind == "task":
        s = replace(s, **{k: v for k, v in fitted(data, s).items() if k not in typed})
    s = settle(s, typed)
    refuse_what_means_nothing(s, typed, kind)
    check(s)
    s = replace(s, compile=choose_compile(s))
    return s


def processes() -> tuple[int, int]:
    """How many processes torchrun started, and which one this is. Raises ValueError where they
    could not find each other. (Some clusters set a part of this for every command.)"""
    if os.environ.get("WORLD_SIZE", "") in ("", "1"):
        return 1, 0
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        if not os.environ.get(name, "").isdecimal():
            raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r} and {name} is "
                             f"{os.environ.get(name, 'not set')!r}: start several processes with "
                             "torchrun, or one with `unset WORLD_SIZE`")
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if not rank < world or not os.environ.get("MASTER_ADDR"):
        raise ValueError(f"WORLD_SIZE is {world}, RANK {rank} and MASTER_ADDR "
                         f"{os.environ.get('MASTER_ADDR', 'not set')!r}: start several processes "
                         "with torchrun, or one with `unset WORLD_SIZE`")
    return world, rank


def introduce(s: Settings, typed: dict) -> None:
    """The first two lines of a run: where it runs, and the settings that matter."""
    judge = f", judged by {s.teacher}" if s.teacher else ""
    dtype = str(s.dtype).removeprefix("torch.")
    print(f"{s.device}, {dtype}, compile {s.compile}: {s.model} on {s.data}{judge}")
    kind = kind_of(s.data)
    names = [*preset_names(kind, s.model), f"{kind}, {s.approach}"]
    presets = " and ".join(n for n in names if n in PRESETS) or "text"
    own = ", ".join(k for k in FLAGS if k in typed and k not in ("data", "out")) or "nothing"
    print(f"lr {s.lr:g}, think_lr {s.think_lr:g}, B {s.prompts}, G {s.samples}, window {s.window}, "
          f"N {s.think_vocab} (preset: {presets}; typed: {own})")


def preset_names(kind: str, model: str) -> list[str]:
    """Of the presets that hold, whatever the approach; later ones above earlier ones."""
    return [kind, f"{kind}, scratch"] if is_new(model) else [kind]


def is_new(model: str) -> bool:
    """Does --model name a shape, and no weights?"""
    return model in ("scratch", "bytes") or model.startswith(("scratch:", "bytes:"))


def of_this_game(spec: dict, approach: str, typed: dict) -> dict:
    """What a variant of the game changes. Writes into spec how long its rounds get."""
    new = {}
    if approach == "next_token":
        spec.setdefault("swaps", 3)
        new |= {"reread": 2, "max_thoughts": spec["swaps"] + 1}
    elif spec.get("balls") == "all":
        # rounds begin in order, so after one move that move is the answer. A window of 5 would
        # show it to the question, and no thought would be learned
        new["window"] = 4
    more = spec.get("m", 3) > 3 or spec.get("balls") == "all" or spec.get("idle")
    ids = typed.get("thoughts", "tokens") == "tokens"
    if more and ids and approach == "stream":
        new["steps"] = 12000  # more pairs of state and move to tell apart
    return new


def limit_rounds(spec: dict, typed: dict) -> None:
    """The longest rounds of the curriculum have to fit --new_tokens."""
    # n moves, each with its comma, and "Where? A" after them
    room, swaps = max(1, (typed["new_tokens"] - 3) // 2), spec.get("swaps", 10)
    if swaps > room and typed.get("curriculum") != "off":
        print(f"--new_tokens {typed['new_tokens']} has room for rounds of {room} moves: the "
              f"curriculum ends there, not at {swaps}")
        spec["swaps"] = room


def settle(s: Settings, typed: dict) -> Settings:
    """What follows from other settings."""
    new = {}
    if s.approach != "teacher":  # given text judges itself
        new["teacher"] = None
    if s.model in ("scratch", "bytes"):
        new["model"] = f"{s.model}:1x64"
    if s.thoughts != "tokens":  # one row, for the gate, or none
        new["think_vocab"] = 0 if s.thoughts == "none" else 1
    if s.approach == "next_token":  # a thought serves one prediction, in a branch of its own
        new |= {"gamma": 0.0, "budget": s.max_thoughts}
        if kind_of(s.data) == "text" and s.window and s.max_thoughts > 1:
            new["reread"] = 1  # else nothing beyond the window could reach a branch
    elif read_spec(s.data) is not None and "budget" not in typed:
        new["budget"] = s.budget * s.max_thoughts  # the presets count one per slot
    elif kind_of(s.data) == "text" and s.from_scratch and "budget" not in typed:
        new["budget"] = s.new_tokens * s.max_thoughts  # in every slot
    if s.reward == "sampled":  # siblings write rounds of any length: no stage could be counted
        new["curriculum"] = typed.get("curriculum", "off")
    chosen = s.reward == "sampled" or s.thoughts == "tokens" or (
        s.think == "free" and s.thoughts != "none")
    if not chosen and typed.get("samples", 1) == 1:
        # nothing is sampled: siblings would be copies, so more contexts instead
        alone = {"prompts": s.prompts * s.samples, "samples": 1, "baseline": "none"}
        new |= {k: v for k, v in alone.items() if k not in typed}
    s = replace(s, **new)
    return replace(s, micro_batch=s.micro_batch or s.prompts * s.samples)


def refuse_what_means_nothing(s: Settings, typed: dict, kind: str) -> None:
    """A flag that was typed where nothing depends on it. Raises ValueError."""
    here = {f"--approach {s.approach}", f"a {kind}",
            "--data cups or a task" if kind != "text" else "",
            "a task or a text" if kind != "cups" else "",
            "a given text" if s.approach != "teacher" else "own text"}
    here |= {"thoughts that stay"} if s.approach != "next_token" else set()
    if kind == "task" and s.approach == "teacher":
        raise ValueError("a task's answers judge: use --approach stream or next_token, not teacher")
    # better no run than one that was not meant
    for name, setting in ONLY.items():
        if name in typed and setting not in here:
            raise ValueError(f"--{name} means nothing here: it belongs to {setting}")
    for name in ("think", "think_prior", "think_cost", "max_thoughts", "budget"):
        if name in typed and s.thoughts == "none":
            raise ValueError(f"--{name} means nothing here: --thoughts none has no thoughts")
    if s.model.startswith("bytes") and (kind == "cups" or s.data.split()[0] == "webtext"):
        raise ValueError("--model bytes reads a file of your own, byte by byte: for cups and "
                         "webtext there is scratch:2x64")
    others = {"task": ("anywhere", *ENDS), "text": THINK_AFTER}.get(kind, ())
    if s.think_after in others:
        known = ", ".join(THINK_AFTER if kind == "task" else ("anywhere", *ENDS))
        raise ValueError(f"--think_after {s.think_after} is for another kind of data: a {kind} "
                         f"takes {known}, or a text of your own")
    for name in ("think_vocab", "entropy"):
        if name in typed and s.thoughts != "tokens":
            raise ValueError(f"--{name} belongs to --thoughts tokens, not to {s.thoughts}")
    if s.reward == "sampled" and s.curriculum != "off":
        raise ValueError("--reward sampled lets siblings write rounds of any length: it has no "
                         "curriculum (--curriculum off)")


def check(s: Settings) -> None:
    """Numbers that can't be. Raises ValueError."""
    for name, least in LEAST.items():
        at_least(name, getattr(s, name), least)
        if getattr(s, name) > MOST.get(name, getattr(s, name)):
            raise ValueError(f"--{name} must be at most {MOST[name]}, not {getattr(s, name)}")
    if s.thoughts == "tokens" and not 1 <= s.think_vocab < 2 ** 31:
        raise ValueError(f"--think_vocab must be at least 1, not {s.think_vocab} "
                         "(--thoughts none runs without thoughts)")
    if s.baseline == "loo" and s.samples < 2:
        raise ValueError("--samples 1 leaves no sibling to compare with: use at least 2, or "
                         "--baseline batch")
    if s.prompts % s.processes:
        raise ValueError(f"--prompts {s.prompts} can't be shared by {s.processes} processes")
    if s.from_scratch or re.fullmatch(r"\w+:\d+x\d+", s.model):
        scratch_shape(s.model)


def scratch_shape(model: str) -> tuple[int, int]:
    """scratch:2x64 or bytes:2x64 -> layers, width. Raises ValueError."""
    kind, _, shape = model.partition(":")
    try:
        layers, width = map(int, shape.split("x"))
    except ValueError:
        layers = width = 0
    fits = 1 <= layers < 1000 and 8 <= width < 2 ** 16 and width % 2 == 0
    if kind not in ("scratch", "bytes") or not fits:
        raise ValueError(f"--model {model}: a new model is scratch:LAYERSxWIDTH or "
                         "bytes:LAYERSxWIDTH, as in scratch:2x64, with a width from 8 on that two "
                         "heads can share")
    return layers, width


def at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError for a number that is too small, and for one that no array could have."""
    if not least <= value < 2 ** 31:  # nan is refused as well
        raise ValueError(f"--{name} must be at least {least}, and below 2^31, not {value}")


def choose_device(asked: str) -> str:
    """auto: the first GPU, else the CPU. Raises ValueError where torch does not see it."""
    gpu = torch.cuda.is_available()
    if asked == "cuda" and not gpu:
        raise ValueError("--device cuda: torch sees no CUDA device here; try --device auto")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: torch sees no Apple GPU here; try --device auto")
    return asked if asked != "auto" else "cuda" if gpu else "cpu"


def choose_compile(s: Settings) -> str:
    """On by default on CUDA, except for cups and new models. Only where torch.compile gets through
    for the smallest function: it wants a C++ compiler, and says so by a page of traceback."""
    # a small model's rollouts are too short to repay the 10 to 20 s that a kind of them takes
    large = read_spec(s.data) is None and not s.from_scratch
    wanted = "on" if s.device == "cuda" and large else "off"
    wanted = wanted if s.compile == "auto" else s.compile
    if wanted == "on":
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(8, device=s.device))
        except Exception as e:  # InvalidCxxCompiler, TritonMissing, BackendCompilerFailed, ...
            reason = next((x.strip() for x in str(e).splitlines() if x.strip()), "")
            print("torch.compile does not run here, so compile is off "
                  f"({type(e).__name__}: {reason[:120]})")
            return "off"
    return wanted


def means(name: str, typed, settled) -> bool:
    """Can what was typed have become this setting?"""
    if name == "data" and None not in (spec := (read_spec(typed), read_spec(settled))):
        return spec[0].items() <= spec[1].items()  # the rest was filled in
    # forms that `settle` completes
    if name == "micro_batch" and typed == 0:
        return True
    if name == "model" and typed in ("scratch", "bytes"):
        typed = f"{typed}:1x64"
    return typed in (settled, "auto")


def from_dict(saved: dict, path: Path) -> Settings:
    """The settings of a checkpoint. Raises ValueError for those of another version."""
    saved = from_format_2(saved) if "cups" in saved else saved
    try:
        return Settings(**saved)
    except TypeError as e:
        raise ValueError(f"{path} was made by another version of train.py ({e})") from e


def from_format_2(old: dict) -> dict:
    """The settings of checkpoints up to format 2, which had other flags."""
    data = old["data"]
    if data == "cups":
        spec = {"m": old["cups"], "balls": old.get("balls", "one"), "idle": old.get("idle", 0.0),
                "moves": old.get("moves", "mixed"), "swaps": old["swaps"]}
        data = write_spec(spec)
    model = f"scratch:{old['layers']}x{old['width']}" if old["model"] == "scratch" else old["model"]
    sampled = old.get("text_grad") == "sampled"
    teacher = "pico-teacher" if old["teacher"] == "pico" else old["teacher"]
    new = {k: v for k, v in old.items() if k in {f.name for f in fields(Settings)}}
    thoughts = "tokens" if old["thoughts"] == "oracle" else old["thoughts"]
    return new | {"data": data, "model": model, "teacher": teacher, "thoughts": thoughts,
                  "reward": "sampled" if sampled else "kl"}
