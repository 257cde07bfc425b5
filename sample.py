"""A prompt, continued, with its thoughts in colour.

    python sample.py --prompt "The ball is under cup B."
    python sample.py --prompt "The ball is under cup B. Moves: AB, left, BC. Where?" --new_tokens 1 --temperature 0
    python sample.py --prompt "..." --hide_thoughts             # what a reader without the thinking rows would see
    python sample.py --prompt "..." --replace 3=17              # every <think3> is overwritten by <think17>
    python sample.py --prompt "..." --html page.html            # point at a thought: the words that it resembles

Prompt red, own text dark blue, thoughts cyan. A model thinks under the rules it was trained with (window, where
thoughts are forced, how many); they are in its checkpoint. Without a checkpoint it says what to run.

Left out on purpose: batching of different prompts (GPT-2's absolute positions break under padding), chat.
"""
import argparse
import signal
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from evaluate import uniforms
from model import GPT, load, read_weights
from rollout import Rollout, Rules, rollout, states_at
from settings import Parser, at_least
from tokenizer import Tokenizer, html_page, use_color


def parse() -> argparse.Namespace:
    p = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    p.add_argument("--prompt", default="The ball is under cup B. Moves:",
                   help="text to continue (but for spaces at its end: a word of GPT-2's brings its own)")
    p.add_argument("--checkpoint", type=Path, default=Path("out/ckpt.pt"), help="made by train.py, or its folder (out/ckpt.pt)")
    p.add_argument("--new_tokens", type=int, default=48, help="text tokens to write")
    p.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest, for text and thoughts")
    p.add_argument("--top_k", type=int, default=0, help="only the k likeliest text tokens; 0: all")
    p.add_argument("--samples", type=int, default=4)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--color", choices=["auto", "always", "never"], default="auto")
    p.add_argument("--html", type=Path, help="write the samples to this page as well")
    p.add_argument("--hide_thoughts", action="store_true", help="print text alone")
    p.add_argument("--replace", metavar="I=J", action="append", default=[], help="think I becomes think J; may be repeated")
    args = p.parse_args()
    args.error = p.error
    return args


def overwritten(pairs: list[str], V: int, N: int) -> torch.Tensor:
    """["3=17"] -> [V + N] table of what each id becomes. Raises ValueError for anything but two thoughts."""
    table = torch.arange(V + N)
    for pair in pairs:
        left, _, right = pair.partition("=")
        if not (left.isdigit() and right.isdigit() and int(left) < N and int(right) < N):
            raise ValueError(f"--replace wants two numbers of thoughts below {N}, as in 3=17, not {pair!r}")
        table[V + int(left)] = V + int(right)
    return table


def rules_of(saved: dict, path: Path) -> Rules:
    """A run's own rules; a plain GPT-2 never thinks. Raises ValueError for those of another version."""
    try:
        return Rules(**saved.get("rules", {"think": "never"}))
    except TypeError as e:
        raise ValueError(f"{path} has rules that this version does not know ({e})") from e


def nearest_rows(model: GPT, tokenizer: Tokenizer, vectors: torch.Tensor, k: int = 4) -> list[str]:  # [n, C] -> n lines
    """The k words whose rows point most nearly where each vector does, with the cosine: what a thought resembles, which
    need not be what it does."""
    cosines = F.normalize(vectors, dim=1) @ F.normalize(model.wte.weight, dim=1).T  # [n, V]
    best, words = cosines.topk(min(k, cosines.shape[1])), tokenizer.words()
    pairs = zip(best.values.tolist(), best.indices.tolist())
    return [", ".join(f"{words[i]!r} {c:.2f}" for c, i in zip(*pair)) for pair in pairs]


@torch.no_grad()
def notes_on(model: GPT, tokenizer: Tokenizer, ro: Rollout, rules: Rules) -> list[list[str]]:
    """For each sample, a line for each of its thoughts: the words nearest to what was fed in. (Of continuous branches,
    which are forgotten, no vector is kept.)"""
    if rules.continuous and not rules.persist:
        return []
    fed = states_at(ro.h, ro.left) if rules.continuous else F.embedding((ro.ids - tokenizer.V).clamp(min=0), model.think)
    lines = iter(nearest_rows(model, tokenizer, fed[ro.is_think]))  # row by row
    return [[f"nearest rows: {next(lines)}" for _ in range(n)] for n in ro.is_think.sum(1).tolist()]


def main() -> None:
    args = parse()
    args.prompt = args.prompt.rstrip(" ")
    try:
        if args.checkpoint.is_dir():
            args.checkpoint = args.checkpoint / "ckpt.pt"
        if args.html and not args.html.absolute().parent.is_dir():
            raise ValueError(f"--html {args.html}: there is no folder {args.html.parent}")
        if not args.checkpoint.exists():
            raise ValueError(f"there is no {args.checkpoint} yet: `python train.py --think_vocab 2048` makes out/ckpt.pt")
        saved = read_weights(args.checkpoint)
        model = load(args.checkpoint)
        run = saved.get("state", {})
        if run.get("step", 0) < run.get("end", 0):
            print(f"{args.checkpoint} is from step {run['step']} of {run['end']}: its run goes on, or was stopped",
                  file=sys.stderr)
        rules = rules_of(saved, args.checkpoint)
        tokenizer = Tokenizer(model.text_ids, model.config.think_vocab, rules.continuous)
        tokenizer.check(model.config.vocab_size)
        if not args.prompt:
            raise ValueError("--prompt is empty: GPT-2 needs at least one token to continue")
        for flag, least in (("new_tokens", 1), ("samples", 1), ("temperature", 0), ("top_k", 0), ("seed", 0)):
            at_least(flag, getattr(args, flag), least)
        ids = tokenizer.encode(args.prompt)
        P, S = len(ids), args.new_tokens
        if P + S > model.config.n_ctx:
            raise ValueError(f"{P} tokens of --prompt and {S} new ones do not fit the model's context of {model.config.n_ctx}")
        # where thoughts stand after certain words, as on cups, they are made for such words of the prompt as well: from the
        # first of them on it is given text
        opens = [i + 1 for i, word in enumerate(ids) if rules.persist and word in (rules.think_after or [])]
        start = min(opens, default=P)
        steps = P - start + S
        if rules.persist:
            rules.budget = max(0, min(steps * rules.max_thoughts, model.config.n_ctx - P - S)) if rules.budget else 0
        table = overwritten(args.replace, tokenizer.V, tokenizer.N)
        u = uniforms(args.seed, 0, "rollout", max(rules.draws(steps), 1), args.samples, "cpu")
        ro = rollout(model, torch.tensor([ids] * args.samples), start, steps, rules, u, args.temperature, top_k=args.top_k,
                     edit=lambda _, ids: table[ids])
    except (ValueError, OSError) as e:
        args.error(str(e))
    style = "ansi" if use_color(args.color, sys.stdout) else "plain"

    def shown(row: list[int], style: str) -> str:
        prompt = [i for i, word in enumerate(row) if word < tokenizer.V][P - 1] + 1  # its ids, thoughts among them
        return tokenizer.show(row, prompt, style, thoughts=not args.hide_thoughts)

    for row in ro.kept():
        print(shown(row, style), end="\n\n")
    if args.html:
        notes = notes_on(model, tokenizer, ro, rules) if ro.is_think.any() and not args.hide_thoughts else []
        page = html_page([shown(row, "html") for row in ro.kept()], args.prompt, not args.hide_thoughts, notes,
                         "Point at a thought to see the words whose rows it is nearest to (cosine). What it means is another "
                         "matter: python -m lab.probe looks that up." if notes else "")
        try:
            args.html.write_text(page, encoding="utf-8")
        except OSError as e:
            args.error(str(e))


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `python sample.py | head -1` ends quietly
    main()
