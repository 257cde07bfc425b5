"""A page of samples whose thoughts answer to the mouse: which words does each one resemble?

    python -m lab.page --checkpoint out --out page.html --prompt "The ball is under cup B. Moves:"

Point at a thought, tab to it or tap it: below it stand the words whose rows point most nearly the
same way. That is what it looks like to the model. What it means is counted by lab/probe.py.

Left out on purpose: scripts in the page, as pointing, the tab key and tapping are CSS; --color and
--replace, which are sample.py's. lab/report.py makes its page with the same `html_page`.

Letters: C width, V text rows, n vectors.
"""
import html
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import command
from model import GPT
from rollout import Dials, Rollout, states_at
from run import Run, open_run
from sample import continue_prompt
from settings import Parser, at_least
from tokenizer import CSS, Tokenizer

HINT = ("Point at a thought to see the words whose rows it is nearest to (cosine). What it means "
        "is another matter: python -m lab.probe looks that up.")
STYLE = ("".join(f".{kind}{{color:{colour}}}" for kind, colour in CSS.items())
         + "body{font:16px/1.7 monospace;max-width:60em;margin:2em auto;padding:0 1em;"
         "background:#fff;color:#222}"
         # a path is broken, so a narrow page is not wider than a phone
         "p{white-space:pre-wrap;overflow-wrap:anywhere;border-bottom:1px solid #ddd;"
         "padding-bottom:1em;position:relative}.think{font-size:80%}"
         # a note is hidden until its thought is pointed at or has the focus
         ".note{display:none;position:absolute;left:1em;top:100%;z-index:1;padding:.3em 1em;"
         "background:#fffbe6;color:#222;border:1px solid #bbb}"
         ".think:hover .note,.think:focus .note{display:block}"
         ".think[tabindex]:hover,.think:focus{background:#fe9}"
         # of lab/report.py
         "table{display:block;overflow-x:auto;border-collapse:collapse;font-size:75%;margin:1em 0}"
         "td,th{border:1px solid #ddd;padding:0 .5em;white-space:nowrap}img{max-width:100%}")


def html_page(samples: list[str], title: str, thoughts: bool = True, notes: list[list[str]] = (),
              hint: str = "", rest: str = "", own: str = "own text") -> str:
    """Samples made by Tokenizer.show(style="html") -> one page that needs no other file.

    thoughts: are there any for the legend to explain? notes: for each sample one text for each of
    its thoughts. Title, notes and hint are escaped here; rest is html for the page's end. own: what
    is shown in the colour of own text.
    """
    title = html.escape(title)
    think = '  <span class="think">&lt;thought&gt;</span>' if thoughts else ""
    legend = (f'<p><span class="prompt">prompt</span>  <span class="text">{own}</span>{think}'
              f'{hint and "<br>" + html.escape(hint)}</p>')
    # (a sample without thoughts has an empty list)
    shown = [with_notes(*pair) for pair in zip(samples, notes)] if notes else samples
    body = "".join(f"<p>{sample}</p>" for sample in shown)
    return ('<!doctype html><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
            f"{legend if samples else ''}{body}{rest}\n")


def with_notes(sample: str, notes: list[str]) -> str:
    """A sample's html with a note in each of its thoughts, which the tab key can reach."""
    left = iter(notes)

    def add(span: re.Match) -> str:
        note = f'<span class="note" role="tooltip">{html.escape(next(left))}</span>'
        return f'<span class="think" tabindex="0">{span[1]}{note}</span>'
    # (a span of `show` has no other tag within it, since its text is escaped)
    return re.sub('<span class="think">([^<]*)</span>', add, sample)


def nearest_rows(model: GPT, tokenizer: Tokenizer, vectors: Tensor, k: int = 4) -> list[str]:
    # [n, C] -> n lines
    """The k words whose rows point most nearly where each vector does, with the cosine. That is
    what a thought resembles, which need not be what it does."""
    rows = F.normalize(model.wte.weight, dim=1)
    cosines = F.normalize(vectors, dim=1) @ rows.T  # [n, V]
    best, words = cosines.topk(min(k, len(rows))), tokenizer.words()
    pairs = zip(best.values.tolist(), best.indices.tolist())
    return [", ".join(f"{words[i]!r} {c:.2f}" for c, i in zip(*pair)) for pair in pairs]


@torch.no_grad()
def notes_on(run: Run, ro: Rollout) -> list[list[str]]:
    """For each sample a line for each of its thoughts: the words nearest to what was fed in. Empty
    where there is no such vector: without thoughts, and in continuous branches, which keep none."""
    model, rules = run.model, run.rules
    if not ro.is_think.any() or (rules.continuous and not rules.persist):
        return []
    if rules.continuous:  # the state from which a place was chosen is what is fed in there
        fed = states_at(ro.h, ro.chosen_at)[ro.is_think]
    else:
        fed = model.think[ro.ids[ro.is_think] - model.config.vocab_size]
    lines = iter(nearest_rows(model, run.tokenizer, fed))  # one for each thought, row by row
    return [[f"nearest rows: {next(lines)}" for _ in range(n)]
            for n in ro.is_think.sum(1).tolist()]


def sample_page(run: Run, prompt: str, ro: Rollout) -> str:
    """The page of a rollout that `continue_prompt` made from this prompt."""
    tokenizer, V = run.tokenizer, run.model.config.vocab_size
    P, shown = len(tokenizer.encode(prompt)), []
    for ids in ro.kept():
        # the prompt ends with its last word; thoughts before that are in it
        end = [i for i, word in enumerate(ids) if word < V][P - 1] + 1
        shown.append(tokenizer.show(ids, end, "html"))
    notes = notes_on(run, ro)
    return html_page(shown, prompt, bool(ro.is_think.any()), notes, HINT if notes else "")


def main() -> None:
    p = Parser(prog="lab.page", description=command.first_line(__doc__), allow_abbrev=False)
    p.add_argument("--checkpoint", type=command.path, default=Path("out"),
                   help="made by train.py, or its folder (out)")
    p.add_argument("--out", type=command.path, default=Path("page.html"),
                   help="the page (page.html)")
    p.add_argument("--prompt", default="The ball is under cup B. Moves:", help="text to continue")
    p.add_argument("--new_tokens", type=int, default=48, help="text tokens to write (48)")
    p.add_argument("--samples", type=int, default=4, help="how many continuations (4)")
    p.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest (1)")
    p.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    args = p.parse_args()
    try:
        for flag, least in dict(new_tokens=1, samples=1, temperature=0, seed=0).items():
            at_least(flag, getattr(args, flag), least)
        command.check_page(args.out)
        if not args.out.absolute().parent.is_dir():  # better now than after the samples
            raise ValueError(f"--out {args.out}: there is no folder {args.out.parent}")
        run, prompt = open_run(args.checkpoint, plain=True), args.prompt.rstrip(" ")
        run.tokenizer.check(run.model.config.vocab_size)
        ro = continue_prompt(run, prompt, args.new_tokens, args.samples, Dials(args.temperature),
                             args.seed)
        # (a prompt may hold half a character)
        page = sample_page(run, prompt, ro).encode("utf-8", "replace")
        command.write_whole(args.out, page)
    except (ValueError, OSError) as e:
        p.error(str(e))
    print(f"{args.out} holds {args.samples} samples with {int(ro.is_think.sum())} thoughts")


if __name__ == "__main__":
    command.run(main)
