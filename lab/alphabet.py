"""Thinking rows that begin as words, and a price for drifting away from them.

    python -m lab.alphabet --alphabet text                     # row i is born as word i
    python -m lab.alphabet --alphabet text --pull 0.003        # and a nat of drift costs 0.003
    python -m lab.alphabet --alphabet redrawn                  # drawn like words, none of them

The loop is train.py's, with `stream`. Three things are added: how rows are born; a cost of each
thought, its KL from the base that reads it as a word; and a column `thoughts_as_text` in each
evaluation, how likely the base finds thoughts as words.

Left out on purpose: --resume; rows that begin as words of another language. Takes all flags of
train.py.
"""
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

import command
from data import plain, seeded
from evaluate import held_out
from fast import rows_at_once
from model import GPT, PICO, SIZES, load
from next_token import layout, roll
from rollout import Dials, Luck, Rollout, Rules, states_at
from run import Run, guarded, take_folder
from settings import introduce, parser, resolve
from train import make_optimizer, setup, text_at_birth, train


@torch.no_grad()
def born_as_words(run: Run, redrawn: bool) -> dict[str, float]:
    """Thinking rows that are copies of the text rows. redrawn: a normal of the same mean and
    covariance (nlp.stanford.edu/~johnhew/vocab-expansion.html). -> p_think on text."""
    s, model, w = run.settings, run.model, run.model.wte.weight
    ids, mask = text_at_birth(run)
    numbers = seeded(s.seed, 0, "birth").integers(2 ** 62)
    noise = like_words(w, len(w), torch.Generator().manual_seed(int(numbers)))
    drawn = (w.float().mean(0) + noise).to(w.dtype)
    model.set_rows(drawn if redrawn else w.detach().clone())
    return model.fit_gate(ids, s.think_prior, mask)


def like_words(w: Tensor, N: int, generator: torch.Generator) -> Tensor:  # [V, C] -> [N, C]
    """Noise with the covariance of the text rows: a thought looks like a mixture of words. So
    what the model has learned to do with words reaches it from the start."""
    noise = torch.randn(N, w.shape[1], generator=generator).to(w.device)
    # the covariance's square root, from its eigenvectors
    values, vectors = torch.linalg.eigh(torch.cov(w.float().T))
    return noise @ (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def logp_of_thoughts(logits: Callable, h: Tensor, ids: Tensor, ro: Rollout, columns: int) -> Tensor:
    # [n, C] -> [n, columns], [R, T, C], [R, T] -> [R, T - P]
    """log-prob of ids where thoughts stand, from the states that chose them; 0 elsewhere."""
    where, n = ro.is_think[:, ro.P:], rows_at_once(columns, ro.ids.device)
    h = states_at(h, ro.chosen_at[:, ro.P:])[where]
    ids = ids[:, ro.P:][where].unsqueeze(-1)
    logp = torch.cat([logits(x).log_softmax(-1).gather(-1, y)
                      for x, y in zip(h.split(n), ids.split(n))])
    return logp.new_zeros(where.shape).masked_scatter(where, logp)


@torch.no_grad()
def as_text(base: GPT, ro: Rollout, rules: Rules) -> Tensor:  # -> [R, T - P]
    """log p_text of each thought, by a base that reads thought i as word i and predicts it as
    that. It sees what the thinker saw: the same places, the same window."""
    V = base.config.vocab_size
    words = ro.ids % V  # (there are no more thinking rows than words)
    return logp_of_thoughts(base.text_logits, base(words, *layout(ro, rules)), words, ro, V)


@torch.no_grad()
def drift(model: GPT, base: GPT, ro: Rollout, rules: Rules) -> Tensor:  # -> [R, T - P]
    """log g(z) - log p_base(z) of each thought z.

    Used as a cost in the return (arXiv 1909.08593), its policy gradient is the gradient of the KL;
    the other term, E[grad log g], is 0. Only g is compared: the base has no gate.
    """
    V = model.config.vocab_size
    own = logp_of_thoughts(model.think_logits, ro.h, ro.ids - V, ro, V)
    return own - as_text(base, ro, rules)


@torch.no_grad()
def thoughts_as_text(run: Run, base: GPT) -> float:
    """Mean log p of greedy thoughts on held-out text, for the base, which reads them as words."""
    s, rules = run.settings, run.rules
    rows = 128 if run.source.levels else s.prompts * s.samples
    ids = held_out(run.source, rows, s.prompt_tokens + s.new_tokens, 3000, s.prompt_tokens)
    text = plain(ids, s.prompt_tokens, s.new_tokens).to(run.model.device)
    dials = Dials(1.0, 0.0 if rules.think == "forced" else 1.0)
    ro = roll(run.model, text, rules, Luck(0, 3, "eval_rollout"), dials)
    return as_text(base, ro, rules).sum().item() / max(ro.is_think.sum().item(), 1)


def prepare(typed: dict, folder: ExitStack) -> tuple[Run, GPT, float]:
    """-> the run, its base, the pull. Raises ValueError."""
    alphabet, pull = typed.pop("alphabet", "text"), typed.pop("pull", 0.0)
    if typed.get("resume") or typed.get("thoughts", "tokens") != "tokens" or pull < 0:
        raise ValueError("an alphabet goes with --thoughts tokens, without --resume, and with a "
                         "--pull from 0 on")
    typed = {"approach": "stream", "model": "pico"} | typed
    if typed["model"] not in (*PICO, *SIZES):
        raise ValueError("an alphabet needs the words of a trained base: --model "
                         f"{', '.join([*PICO, *SIZES])}")
    base = load(typed["model"])
    V = base.config.vocab_size
    if typed.setdefault("think_vocab", V) != V:
        raise ValueError(f"there is a thinking row for each of {V} words: leave --think_vocab so")
    s = resolve(typed)
    introduce(s, typed)
    take_folder(s, folder)
    run = setup(s)
    run.resumable = False
    born_as_words(run, alphabet == "redrawn")
    run.optimizer = make_optimizer(run)
    base = base.to(s.device).requires_grad_(False)
    run.also_measure = lambda: {"thoughts_as_text": thoughts_as_text(run, base)}
    return run, base, pull


def begin(run: Run, base: GPT, pull: float) -> None:
    def price(ro: Rollout, rules: Rules) -> Tensor:
        return pull * drift(run.model, base, ro, rules)
    train(run, price if pull else None)


def main() -> None:
    p = parser()
    p.prog = "lab.alphabet"
    p.add_argument("--alphabet", choices=["text", "redrawn"],
                   help="rows born as words, or drawn like them (text)")
    p.add_argument("--pull", type=float, help="what a nat of KL from the base costs (0)")
    typed = vars(p.parse_args())
    guarded(p, lambda folder: prepare(typed, folder), lambda all_: begin(*all_))


if __name__ == "__main__":
    command.run(main, goes_on=True)
