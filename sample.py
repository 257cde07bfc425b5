"""A prompt, continued, with its thoughts in colour.

    python sample.py --prompt "The ball is under cup B. Moves: AB, left, BC. Where?" --new_tokens 1
    python sample.py --prompt "..." --hide_thoughts             # what a reader of the text sees
    python sample.py --prompt "..." --replace 3=17              # each <think3> becomes <think17>

Prompt red, own text dark blue, thoughts cyan. A model thinks under the rules that it was trained
with; they are in its checkpoint. From Python:

    from sample import generate, load_run
    for s in generate(load_run("out"), "The ball is under cup B. Moves:", samples=2):
        print(s.text, s.thoughts, s.meanings, s.p_think)

Left out on purpose: chat. Knows run.py and what is below it.
"""
import os
import sys

if __name__ == "__main__":  # before libraries, which take seconds to load
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import command
    command.begin()

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from command import check_rows, first_line, path
from data import plain
from next_token import answer_prompt, gate_at, roll
from rollout import SAMPLED, Dials, Edit, Luck, Rollout
from run import Run, load_run
from settings import Parser, at_least
from task import answer_lines, encode, end_of_answer, pieces_for
from tokenizer import use_color


class Sample(NamedTuple):
    """text: prompt and continuation, without thoughts. thoughts: (name, the text before it) of
    each. ids: text and thoughts as they stand. prompt: how many of the ids are the prompt, with
    the thoughts in it. output: the continuation alone. meanings: of each thought, as lab.probe
    counted. p_think: at each of the ids, how likely a thought was."""
    text: str
    thoughts: list[tuple[str, str]]
    ids: list[int]
    prompt: int
    output: str
    meanings: list[str]
    p_think: list[float]


def generate(run: Run, prompt: str | list[str], new_tokens: int = 48, samples: int = 1,
             dials: Dials = SAMPLED, seed: int = 0, edit: Edit | None = None) -> list[Sample]:
    """Continue a prompt under the run's own rules. Dials(0) is the likeliest continuation.

    prompt: of a task it may be a list of steps. edit: what thoughts are overwritten by. Raises
    ValueError for a prompt that is empty, outside the model's language or too long.
    """
    ro = continue_prompt(run, prompt, new_tokens, samples, dials, seed, edit)
    tokenizer, V = run.tokenizer, run.model.config.vocab_size
    P, out = ro.text.shape[1] - new_tokens, []
    gates, end = gate_at(run.model, ro), end_of_answer(run.model.text_ids) if run.is_task else []
    for r, ids in enumerate(ro.kept()):
        ids = ids[:ids.index(end[0])] if end and end[0] in ids else ids
        text_at = [i for i, word in enumerate(ids) if word < V]  # where text stands
        # of each thought its name, and what a reader of the text has read by then
        thoughts = [(tokenizer.name(word), tokenizer.decode(ids[:i], thoughts=False))
                    for i, word in enumerate(ids) if word >= V]
        start = text_at[P - 1] + 1  # of what is new, after the thoughts that stand in the prompt
        says = [run.meaning.get(str(word - V), "") for word in ids if word >= V]
        p_think = gates[r][ro.is_text[r] | ro.is_think[r]][:len(ids)].tolist()
        text, output = (tokenizer.decode(x, thoughts=False) for x in (ids, ids[start:]))
        out.append(Sample(text, thoughts, ids, start, output, says, p_think))
    return out


def continue_prompt(run: Run, prompt: str | list[str], new_tokens: int, samples: int,
                    dials: Dials, seed: int, edit: Edit | None = None) -> Rollout:
    """The rollout behind `generate`."""
    model, rules, slots = run.model, run.rules, []
    if run.is_task:
        ids, slots = encode(run.tokenizer, pieces_for(prompt, run.settings.think_after))
    else:
        ids = run.tokenizer.encode(prompt)
    if not ids:
        raise ValueError("the prompt is empty: a model needs at least one token to continue")
    # room: for thoughts, in the model's context
    P, room = len(ids), model.config.n_ctx - len(ids) - new_tokens
    if room < 0:
        raise ValueError(f"{P} tokens of the prompt and {new_tokens} new ones do not fit the "
                         f"model's context of {model.config.n_ctx}")
    if run.is_task:
        return answer_prompt(model, rules, ids, slots, new_tokens, samples, dials=dials,
                             edit=edit, luck=Luck(seed, 0, "rollout"))
    # thoughts that stand after certain words, as moves of cups, are needed in the prompt too: it
    # ends at the first such word, and the rest is given text
    words = rules.think_after or []
    start = next((i + 1 for i, word in enumerate(ids) if rules.persist and word in words), P)
    S = P - start + new_tokens
    if rules.persist and rules.budget:  # a budget for this length, not for training's
        rules = replace(rules, budget=max(0, min(S * rules.max_thoughts, room)))
    text = plain(torch.tensor([ids] * samples, device=model.device), start, S, siblings=samples)
    return roll(model, text, rules, Luck(seed, 0, "rollout"), dials, edit)


def overwritten(pairs: list[str], V: int, N: int) -> torch.Tensor:  # -> [V + N]
    """["3=17"] -> what each id becomes. Raises ValueError for anything but two thoughts."""
    table = torch.arange(V + N)
    for pair in pairs:
        old, _, new = pair.partition("=")
        if not (old.isdigit() and new.isdigit() and int(old) < N and int(new) < N):
            raise ValueError(f"--replace wants two numbers of thoughts below {N}, as in 3=17, "
                             f"not {pair!r}")
        table[V + int(old)] = V + int(new)
    return table


def parse() -> argparse.Namespace:
    p = Parser(description=first_line(__doc__), allow_abbrev=False)
    p.add_argument("--prompt", help="text to continue (of a task or a text: a held-out one)")
    p.add_argument("--checkpoint", type=path, default=Path("out"),
                   help="made by train.py, or its folder (out)")
    p.add_argument("--new_tokens", type=int, default=48, help="text tokens to write (48)")
    p.add_argument("--temperature", type=float,
                   help="0: the likeliest, for text and thoughts (1; 0 with --jsonl)")
    p.add_argument("--top_k", type=int, default=0, help="the k likeliest text tokens; 0: all")
    p.add_argument("--samples", type=int, default=4, help="how many continuations (4)")
    p.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    p.add_argument("--color", choices=["auto", "always", "never"], default="auto")
    p.add_argument("--hide_thoughts", action="store_true", help="print text alone")
    p.add_argument("--replace", metavar="I=J", action="append", default=[],
                   help="think I becomes think J; may be repeated")
    p.add_argument("--jsonl", type=path, nargs=2, metavar=("IN", "OUT"),
                   help="answer each line's prompt; write lines with output and thoughts")
    args = p.parse_args()
    if args.temperature is None:  # a file wants answers, not variety
        args.temperature = 0.0 if args.jsonl else 1.0
    args.error = p.error
    return args


def main() -> None:
    args = parse()
    try:
        for flag, least in dict(new_tokens=1, samples=1, temperature=0, top_k=0, seed=0).items():
            at_least(flag, getattr(args, flag), least)
        run = load_run(args.checkpoint)
        p, c = run.progress, run.model.config
        if p.step < p.end:  # to stderr: the samples may go into a file
            print(f"{args.checkpoint} is from step {p.step} of {p.end}: its run goes on, or was "
                  "stopped", file=sys.stderr)
        run.tokenizer.check(c.vocab_size)
        table = overwritten(args.replace, c.vocab_size, c.think_vocab)
        dials = Dials(args.temperature, None, args.top_k)
        if args.jsonl:
            check_rows(args.jsonl[1], args.jsonl[0])
            return answer_lines(
                *args.jsonl, lambda x: generate(run, x, args.new_tokens, 1, dials)[0])
        prompt = args.prompt
        if prompt is None:
            prompt = run.a_prompt() or "The ball is under cup B. Moves:"
        # (a word of GPT-2's begins with its space, so a space at the prompt's end is none)
        prompt = prompt if run.tokenizer.by_byte else prompt.rstrip(" ")
        found = generate(run, prompt, args.new_tokens, args.samples, dials,
                         args.seed, lambda _, ids: table[ids])
    except (ValueError, OSError) as e:
        args.error(str(e))
    style = "ansi" if use_color(args.color, sys.stdout) else "plain"
    for s in found:
        print(run.tokenizer.show(s.ids, s.prompt, style, not args.hide_thoughts), end="\n\n")


if __name__ == "__main__":
    command.run(main)
