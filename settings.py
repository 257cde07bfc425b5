"""The settings of a run: which flags train.py has, what they mean where nothing is said, and what is refused.

`parse` reads the command line, in which most flags have no default. `resolve` fills in, for a new run, what was not said: it
depends on the approach, the data and the machine. `pick_up` takes the settings of a run that goes on from its checkpoint. What
does not fit together is a ValueError of one line, before a model is built. From then on settings are a plain dict, `a`, that is
stored in the checkpoint.

Left out on purpose: files of settings and variables of the environment; a run is the line that started it. What only a model or
the data can tell is refused where they are loaded (train.py). Knows model.py and data.py.
"""
import argparse
import difflib
import math
from pathlib import Path

import torch

from data import check_path
from model import PICO, SIZES, read_weights


class Parser(argparse.ArgumentParser):
    """One clear line and exit code 2, with the nearest flag's name."""

    def error(self, message: str):
        if message.startswith("unrecognized arguments"):
            flags = [f for action in self._actions for f in action.option_strings]
            near = difflib.get_close_matches(message.split()[2].split("=")[0], flags, 1)
            message += f" (did you mean {near[0]}?)" if near else f" ({self.prog} --help lists them)"
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def flags_of_train() -> Parser:
    """All flags, with their help. Most have no default here, as it depends on others: see `fill_in_defaults`."""
    p = Parser(description="Teach GPT-2 to think in tokens of its own, by reward alone.", allow_abbrev=False)
    # what is learnt, from what
    p.add_argument("--approach", choices=["teacher", "stream", "next_token"], default="teacher", help="who pays for a thought")
    p.add_argument("--thoughts", choices=["tokens", "continuous", "filler", "none", "oracle"], default="tokens",
                   help="continuous: the hidden state is fed back; filler: one learnt row; none: no slot; oracle: the cup")
    p.add_argument("--model", help=f"scratch, {', '.join([*PICO, *SIZES])} or a path")
    p.add_argument("--teacher", help="as --model; only --approach teacher has one")
    p.add_argument("--layers", type=int, help="of --model scratch (1)")
    p.add_argument("--width", type=int, help="of --model scratch (64)")
    p.add_argument("--data", help="cups, webtext, or a .txt or .jsonl file")
    p.add_argument("--cups", type=int, help="how many cups (3)")
    p.add_argument("--balls", choices=["one", "all"], help="cups: one ball, or one under each cup, and the question names one")
    p.add_argument("--moves", choices=["mixed", "turns"], help="cups: swaps and turns by one, or turns by any number of places")
    p.add_argument("--swaps", type=int, help="the longest round that a curriculum reaches (10; next_token 3)")
    p.add_argument("--idle", type=float, help="share of moves that do nothing (0)")
    # thoughts
    p.add_argument("--think_vocab", type=int, help="N, the number of thinking rows (2048)")
    p.add_argument("--alphabet", choices=["new", "text", "redrawn"], default="new", help="rows born as words, or drawn like them")
    p.add_argument("--pull", type=float, help="alphabet text: what a nat of KL from the base costs, which reads words (0)")
    p.add_argument("--think", choices=["free", "forced"], help="may the model choose when to think?")
    p.add_argument("--think_prior", type=float, help="mean p_think at birth")
    p.add_argument("--max_thoughts", type=int, help="K, thoughts in a row at one slot (1; next_token: swaps + 1, on text 4)")
    p.add_argument("--budget", type=int, help="M, thoughts in a whole rollout")
    p.add_argument("--think_cost", type=float, help="nats that a thought costs")
    p.add_argument("--window", type=int, help="tokens back that are seen beside the last thought; 0: all")
    p.add_argument("--thinker", help="a stream checkpoint that thinks, by its own window: learn its thoughts without one")
    p.add_argument("--reread", type=int, help="next_token: tokens that a branch reads on from thought to thought; 0: sees all")
    # rollouts
    p.add_argument("--prompts", type=int, help="B, contexts a step; a curriculum takes fewer of longer rounds")
    p.add_argument("--samples", type=int, help="G, siblings of a context")
    p.add_argument("--prompt_tokens", type=int, help="P, real text that a rollout starts from")
    p.add_argument("--new_tokens", type=int, help="S, text tokens that follow")
    p.add_argument("--temperature", type=float, help="of sampling; 1 is on-policy")
    p.add_argument("--micro_batch", type=int, help="rows in one gradient forward: less memory, same gradient")
    # learning
    p.add_argument("--steps", type=int, help="updates (cups: 1500, stream 1600 at most, harder worlds 12000; text: 1000)")
    p.add_argument("--lr", type=float, help="learning rate of GPT-2's own parameters")
    p.add_argument("--think_lr", type=float, help="learning rate of the thinking rows")
    p.add_argument("--warmup", type=int, help="steps in which the learning rates rise (15; 50 from scratch)")
    p.add_argument("--entropy", type=float, help="target entropy of g, as a share of log N")
    p.add_argument("--gamma", type=float, help="discount per text token")
    p.add_argument("--siblings", choices=["shared", "free"], help="teacher: G thoughts over one own text, or G own texts")
    p.add_argument("--baseline", choices=["loo", "batch", "none"], help="what a return is compared with")
    p.add_argument("--beta", type=float, help="weight of the own log-prob in the teacher's reward (1: reverse KL)")
    p.add_argument("--text_grad", choices=["exact", "sampled"], help="teacher: gradient of text rows")
    p.add_argument("--answer_grad", choices=["on", "off"], help="given text: train p_text of the paying tokens directly")
    p.add_argument("--curriculum", choices=["on", "strict", "off"],
                   help="cups: rounds of 1 move first (on); strict: each stage nearly right (stream of ids in harder worlds)")
    # the run
    p.add_argument("--seed", type=int, default=0, help="of everything that is drawn: weights, text, rollouts (0)")
    p.add_argument("--eval_every", type=int, help="steps between evaluations, each with a checkpoint (one a minute besides)")
    p.add_argument("--keep_every", type=int, help="steps between checkpoints that stay, as ckpt_000200.pt (0: the last alone)")
    p.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    p.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of matrix products")
    p.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="torch.compile for the rollout")
    p.add_argument("--out", type=Path, default=Path("out"), help="folder for checkpoint, log and pictures")
    p.add_argument("--resume", action="store_true", help="go on from OUT/ckpt.pt, with its settings")
    return p


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line of train.py; what was not said is None, but for a few flags that mean the same everywhere. Besides the
    flags: said, the names of those that were typed, and error, which ends the program with one line. Exits with 2 itself
    where a flag is unknown or its value is of the wrong kind."""
    p = flags_of_train()
    args = p.parse_args(argv)
    for action in p._actions:  # a second look, at what was typed alone
        action.default = argparse.SUPPRESS
    args.said, args.error = set(vars(p.parse_args(argv))), p.error
    return args


ONLY = {  # flags that mean something in one setting alone; anywhere else they are refused
    "teacher": "approach teacher", "beta": "approach teacher", "text_grad": "approach teacher",
    "siblings": "approach teacher", "gamma": "thoughts that stay", "budget": "thoughts that stay",
    "answer_grad": "a given text", "curriculum": "data cups", "reread": "approach next_token",
    "layers": "model scratch", "width": "model scratch", "cups": "data cups", "swaps": "data cups", "idle": "data cups",
    "balls": "data cups", "moves": "data cups", "thinker": "approach stream with tokens or continuous thoughts on cups",
    "pull": "alphabet text, of thoughts that no --thinker tells",
}
# a window, since who sees everything has no need of thoughts while they are still noise, and siblings do not differ
ON_CUPS = dict(think="forced", window=5, lr=2e-3, think_lr=2e-3, samples=8, entropy=0.25, gamma=0.9, think_cost=0.0,
               prompts=32, prompt_tokens=17, think_prior=0.5)
ON_TEXT = dict(think="free", window=0, lr=1e-5, think_lr=1e-3, samples=4, entropy=0.5, gamma=0.95, think_cost=0.0,
               prompts=8, prompt_tokens=64, new_tokens=64, budget=32, steps=1000, think_prior=0.1, eval_every=100)
DEFAULTS = {
    ("teacher", "cups"): ON_CUPS | dict(new_tokens=48, budget=20, steps=1500, eval_every=750),
    ("stream", "cups"): ON_CUPS | dict(new_tokens=32, budget=16, steps=1600, eval_every=800, prompts=16, gamma=1.0, lr=1e-3),
    # without rereading thoughts stayed unused: one layer answers short rounds directly, and siblings do not differ
    ("next_token", "cups"): ON_CUPS | dict(new_tokens=32, swaps=3, steps=1500, eval_every=750, prompts=16, lr=1e-3,
                                           window=7, reread=2),
    ("teacher", "text"): ON_TEXT, ("stream", "text"): ON_TEXT, ("next_token", "text"): ON_TEXT | dict(max_thoughts=4),
}
# the thoughts of a --thinker mean something from the start: nothing is explored, so no siblings, no bonus, no stages, and a
# learning rate as in supervised learning; stories are as long as they are in the test
TAUGHT = dict(window=0, curriculum="off", new_tokens=40, samples=1, prompts=32, baseline="none", entropy=0.0, lr=4e-3,
              steps=1500)  # after 900 seeds 0 to 3 had 98, 93, 98 and 99 % at n = 10
TAUGHT_VECTORS = TAUGHT | dict(steps=3000)  # they have to be hit, not only told apart: 1,500 left seed 2 at 87 %
# what is left to fill in after all that
ALWAYS = dict(think_vocab=2048, max_thoughts=1, temperature=1.0, baseline="loo", beta=1.0, cups=3, balls="one", moves="mixed",
              swaps=10, idle=0.0, reread=0, text_grad="exact", answer_grad="on", curriculum="on", layers=1, width=64,
              keep_every=0, pull=0.0)
MOST = dict(gamma=1, entropy=1)
LEAST = dict(prompts=1, samples=1, prompt_tokens=1, new_tokens=1, steps=1, micro_batch=1, eval_every=1, warmup=1, swaps=1,
             layers=1, width=8, max_thoughts=1, budget=0, window=0, reread=0, seed=0, lr=0, think_lr=0, temperature=0.01,
             entropy=0, gamma=0, think_cost=-1e3, think_prior=0, pull=0, beta=0, keep_every=0)


def resolve(args: argparse.Namespace) -> dict:
    """The settings of a new run: each step fills in something of what was not said, and may lean on the steps before it.
    Prints the choices that depend on the machine, with their reason. Raises ValueError."""
    a, said = {k: v for k, v in vars(args).items() if k not in ("said", "error", "out", "resume")}, args.said
    why = choose_device(a)
    choose_data_and_models(a)
    refuse_what_means_nothing(a, said)
    fill_in_defaults(a)
    settle_budget(a, said)
    settle_siblings(a, said)
    settle_thinking_rows(a)
    spare_copies(a, said)
    check_bounds(a)
    gpu = a["device"] == "cuda"
    if a["dtype"] == "auto":
        a["dtype"] = "bfloat16" if gpu and torch.cuda.is_bf16_supported() else "float32"
    if a["compile"] == "auto":
        a["compile"] = "on" if gpu else "off"
    if a["compile"] == "on" and not can_compile(a["device"]):
        a["compile"] = "off"
    print(f"{why}: {a['device']}, {a['dtype']}, compile {a['compile']}, {a['model']} on {a['data']}"
          + (f", judged by {a['teacher']}{'-teacher' * (a['teacher'] == 'pico')}" if a["teacher"] else ""))
    return a


def can_compile(device: str) -> bool:
    """Does torch.compile get through for the smallest function there is? It wants a C++ compiler, and says so by a page of
    traceback, in the middle of the first rollout."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as e:  # of many kinds: InvalidCxxCompiler, TritonMissing, BackendCompilerFailed, ...
        reason = next((line.strip() for line in str(e).splitlines() if line.strip()), "")
        print(f"torch.compile does not run here, so compile is off ({type(e).__name__}: {reason[:120]})")
        return False
    return True


def choose_device(a: dict) -> str:
    """The first GPU, else the CPU -> the reason in words. Raises ValueError where torch does not see what was asked for."""
    asked, gpu = a["device"], torch.cuda.is_available()
    if asked == "cuda" and not gpu:
        raise ValueError("--device cuda: torch sees no CUDA device here; try --device auto")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device mps: torch sees no Apple GPU here; try --device auto")
    if asked != "auto":
        return f"--device {asked}"
    a["device"] = "cuda" if gpu else "cpu"
    return "a GPU is there" if gpu else "there is no GPU"


def choose_data_and_models(a: dict) -> None:
    """With a GPU GPT-2 on WebText, else cups with what fits it. Raises ValueError where a text can't be read."""
    a |= {k: None for k in ("model", "teacher", "data") if a[k] == "auto"}
    a["data"] = a["data"] or ("webtext" if a["device"] == "cuda" else "cups")
    cups, judged = a["data"] == "cups", a["approach"] == "teacher"
    if a["data"] not in ("cups", "webtext"):
        check_path(a["data"])  # before a model is downloaded for it
    small = "pico" if judged else "scratch"  # who is judged has to write; a given text can be learnt from the start
    a["model"] = a["model"] or (small if cups else "gpt2")
    a["teacher"] = (a["teacher"] or ("pico" if cups else "gpt2")) if judged else None


def refuse_what_means_nothing(a: dict, said: set[str]) -> None:
    """A flag that was typed where nothing depends on it: better no run than one that wasn't meant. Raises ValueError."""
    cups = a["data"] == "cups"
    here = {f"approach {a['approach']}", f"data {'cups' if cups else 'text'}", f"model {a['model']}",
            "a given text" if a["teacher"] is None else "own text"}
    here |= {"thoughts that stay"} if a["approach"] != "next_token" else set()
    here |= {ONLY["pull"]} if a["alphabet"] == "text" and not a["thinker"] else set()
    here |= {ONLY["thinker"]} if a["approach"] == "stream" and a["thoughts"] in ("tokens", "continuous") and cups else set()
    for flag, setting in ONLY.items():
        if flag in said and setting not in here:
            raise ValueError(f"--{flag} means nothing here: it belongs to {setting}")
    for flag in sorted({"think", "think_prior", "think_cost", "max_thoughts", "budget"} & said):
        if a["thoughts"] == "none":
            raise ValueError(f"--{flag} means nothing here: --thoughts none has no thoughts")
    if a["thoughts"] != "tokens" and {"think_vocab", "entropy", "alphabet"} & said:
        raise ValueError(f"--think_vocab, --entropy and --alphabet belong to --thoughts tokens, not to {a['thoughts']}")
    if a["alphabet"] != "new" and a["model"] not in (*PICO, *SIZES):  # (and read again on --resume: no file that may change)
        raise ValueError(f"--alphabet {a['alphabet']} needs the words of a trained base: --model {', '.join([*PICO, *SIZES])}")


def fill_in_defaults(a: dict) -> None:
    """All that is still None, from the tables above: first what is special, then approach and data, then what always holds."""
    cups = a["data"] == "cups"
    special = {} if not a["thinker"] else TAUGHT_VECTORS if a["thoughts"] == "continuous" else TAUGHT
    if a["balls"] == "all" and a["approach"] != "next_token":
        # rounds begin in order, so after one move that move is the answer: a window of 5 would show it to the question, and no
        # thought would be learnt
        special = {"window": 4} | special
    if harder(a) and a["curriculum"] in (None, "strict"):
        special = {"curriculum": "strict", "steps": 12000} | special  # at the most: it ends when the last stage is learnt
    fill_in(a, DEFAULTS[a["approach"], "cups" if cups else "text"] | special)
    if a["approach"] == "next_token" and cups:
        fill_in(a, {"max_thoughts": a["swaps"] + 1})  # one to go back with, then one for each move
    warmup = 50 if a["model"] == "scratch" else 15
    fill_in(a, {} if a["alphabet"] == "new" else {"think_vocab": 0})  # the model's V, not known before it is loaded
    fill_in(a, ALWAYS | dict(warmup=warmup, micro_batch=a["prompts"] * a["samples"]))


def harder(a: dict) -> bool:
    """Is this `stream` of ids in a world with more to tell apart than three cups' five moves?"""
    world = (a["cups"] or 3) > 3 or a["balls"] == "all" or bool(a["idle"])
    return world and a["approach"] == "stream" and a["thoughts"] == "tokens" and a["data"] == "cups"


def fill_in(a: dict, values: dict) -> None:
    """These values, where there is none yet."""
    a |= {k: v for k, v in values.items() if a[k] is None}


def settle_budget(a: dict, said: set[str]) -> None:
    """Thoughts in a whole rollout: the tables count one a slot."""
    if a["approach"] == "next_token":  # a thought serves one prediction, and has its branch to itself
        a |= dict(gamma=0.0, budget=a["max_thoughts"])
    elif a["data"] == "cups" and "budget" not in said:
        a["budget"] *= a["max_thoughts"]


def settle_siblings(a: dict, said: set[str]) -> None:
    """teacher: do siblings share one text? Raises ValueError where what was typed says both yes and no."""
    a["siblings"] = a["siblings"] or ("shared" if a["text_grad"] == "exact" else "free")
    if a["siblings"] == "free" and a["data"] == "cups":
        # each sibling writes its own rounds: there is no stage whose answers could be counted
        if a["curriculum"] != "off" and "curriculum" in said:
            raise ValueError("--siblings free writes rounds of any length: it has no curriculum (--curriculum off)")
        a["curriculum"] = "off"
    if a["siblings"] == "shared" and a["text_grad"] == "sampled":
        raise ValueError("--text_grad sampled treats own text as a choice, so each sibling needs its own: --siblings free")


def settle_thinking_rows(a: dict) -> None:
    """think_vocab is N for tokens alone; for all other kinds of thoughts it follows from the kind. Raises ValueError."""
    if a["thoughts"] == "oracle" and (a["approach"] != "stream" or a["data"] != "cups" or a["think"] != "forced"):
        raise ValueError("--thoughts oracle tells the cup of the ball: --approach stream --data cups --think forced")
    if a["thoughts"] == "oracle":  # a row for each state (all balls of six cups there are not: data.Cups refuses them)
        a["think_vocab"] = math.factorial(min(max(a["cups"], 0), 6)) if a["balls"] == "all" else a["cups"]
    elif a["thoughts"] != "tokens":
        a["think_vocab"] = {"continuous": 1, "filler": 1, "none": 0}[a["thoughts"]]


def spare_copies(a: dict, said: set[str]) -> None:
    """Where nothing is sampled siblings would be copies of each other: as many contexts instead."""
    gated = a["think"] == "free" and a["thoughts"] != "none"
    chosen = a["text_grad"] == "sampled" or a["thoughts"] == "tokens" or gated
    if not chosen and not {"prompts", "samples", "baseline"} & said:
        a |= dict(prompts=a["prompts"] * a["samples"], samples=1, baseline="none")


def check_bounds(a: dict) -> None:
    """Numbers that can't be: raises ValueError. A curriculum that is too long for its stories ends sooner, and says so."""
    for k, least in LEAST.items():
        at_least(k, a[k], least)
        if a[k] > MOST.get(k, a[k]):
            raise ValueError(f"--{k} must be at most {MOST[k]}, not {a[k]}")
    room = max(1, (a["new_tokens"] - 3) // 2)  # n moves, each with its comma, and "Where? A" after them
    if a["data"] == "cups" and a["curriculum"] != "off" and a["swaps"] > room:
        print(f"--new_tokens {a['new_tokens']} has room for rounds of {room} moves: the curriculum ends there, "
              f"not at {a['swaps']}")
        a["swaps"] = room
    if a["width"] % 2:
        raise ValueError(f"--width must be even, for two heads, not {a['width']}")
    if a["thoughts"] == "tokens" and not (a["alphabet"] == "new") <= a["think_vocab"] < 2 ** 31:
        raise ValueError(f"--think_vocab must be at least 1, not {a['think_vocab']} (--thoughts none runs without thoughts)")
    if a["baseline"] == "loo" and a["samples"] < 2:
        raise ValueError("--samples 1 leaves no sibling to compare with: use at least 2, or --baseline batch")


def at_least(flag: str, value: float, least: float) -> None:
    """Raises ValueError for a number that is too small, and for one that no array could have."""
    if not least <= value < 2 ** 31:  # nan is refused as well
        raise ValueError(f"--{flag} must be at least {least}, and below 2^31, not {value}")


def pick_up(args: argparse.Namespace) -> tuple[dict, dict]:
    """--resume: -> the settings to go on with, and the checkpoint. Raises ValueError, one line."""
    path = args.out / "ckpt.pt"
    if not path.exists():
        raise ValueError(f"nothing to resume: there is no {path}")
    saved = read_weights(path)
    steps = saved.get("state", {}).get("step", 0)
    if args.steps is not None and args.steps < max(steps, 1):
        raise ValueError(f"--steps {args.steps}: the run that is to go on has made {steps} steps already")
    if not {"args", "rules", "state", "optimizer"} <= saved.keys():
        raise ValueError(f"{path} is a model, but not the checkpoint of a run that could go on")
    unknown = vars(args).keys() - saved["args"].keys() - {"resume", "said", "error"}
    if unknown:
        raise ValueError(f"{path} is of an older version, whose runs had no --{min(unknown)}: start anew")
    for k in sorted(args.said - {"steps", "out", "resume"}):
        if getattr(args, k) not in (saved["args"][k], "auto"):
            raise ValueError("--resume goes on with the settings of its run, but for --steps: it had "
                             f"--{k} {saved['args'][k]}, not {getattr(args, k)}")
    if saved["args"]["device"] == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{path} was made on a CUDA device, and torch sees none here")
    if saved["args"]["device"] == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{path} was made on an Apple GPU, and torch sees none here")
    if saved["args"]["compile"] == "on" and not can_compile(saved["args"]["device"]):
        saved["args"]["compile"] = "off"
    if args.steps:
        saved["args"]["steps"] = saved["state"]["end"] = args.steps
        saved["state"]["wanted"] = True  # so many, and no end where the curriculum is done
    if steps == saved["state"].get("end"):
        print(f"this run has made all of its {steps} steps: nothing is left to do, but --resume --steps N goes on to step N")
    return saved["args"] | {"out": str(args.out)}, saved
