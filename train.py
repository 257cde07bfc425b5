"""Teach GPT-2 to think in tokens of its own. Thoughts learn by reward alone.

    python train.py --think_vocab 2048                  # `teacher`: own text, judged by a teacher
    python train.py --approach stream                   # thoughts between the tokens of given text
    python train.py --approach next_token               # thoughts before each token, then forgotten
    torchrun --nproc_per_node=4 train.py ...            # a step's contexts shared by four processes

One step: 1 take text, 2 roll out siblings, 3 score, 4 compare, 5 one gradient step. With a GPU this
is GPT-2 on WebText, without one the shipped `pico` on the game `cups`.

Left out of GRPO and PPO: ratio, clip and a forward for old log-probs, since one step per rollout
makes the ratio 1. A KL to a reference model, since the teacher is in the reward. A value network,
since siblings are the baseline.

Letters: B contexts, G siblings, R = B G rows, P prompt tokens, S new text tokens, L = P + S,
T places of text and thoughts, C width.
"""
import os
import sys

if __name__ == "__main__":  # before libraries, which take seconds to load
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -P leaves it out
    import command
    command.begin()

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from data import Source, Text, seeded
from download import Unreached
from evaluate import answers_right, whole
from fast import sampler_of
from model import GPT, Config, load
from next_token import roll, states
from reward import (Credit, Judge, Scale, Score, advantages, all_rows, rarity_of, rollout_loss,
                    scale_of, score, text_weights)
from rollout import Rollout, Rules, visible_text
from run import WORLD, Run, guarded, join_processes, reopen, take_folder
from settings import Settings, introduce, parser, resolve, scratch_shape
from task import open_source
from tokenizer import Tokenizer


AHEAD = 8  # steps for which `teacher` writes text at once
# The curriculum
LOOK = 10  # steps between two looks
QUIZ = 64  # rows in a look; on cups some hundred answers
AFTER = 60  # steps still made once the last stage is learned,
LOST = 0.9  # unless fewer than that are right at a later look


# Before the first step: model, teacher, rules, thinking rows, optimizer

def setup(s: Settings, source: Source | None = None) -> Run:
    """A new run. source: of your own, instead of --data. Raises ValueError."""
    torch.manual_seed(s.seed)
    if s.from_scratch:  # its rows are the text's words
        source = source or open_source(s.data, settings=s, own=True)
        model = new_model(s, source)
    else:
        model = load(s.model)
        source = source or open_source(s.data, model.text_ids, s)
    run = Run(model, rules_of(s, source), s, source=source)
    run.check(load)
    run.model.to(s.device)
    if s.think_vocab:
        p = give_rows(run)
        if s.think == "free":  # else the gate is never asked
            print(f"{s.think_vocab} thinking rows: p_think {p['mean']:.3f} "
                  f"(5-95 %: {p['p05']:.3f} to {p['p95']:.3f})")
    run.optimizer = make_optimizer(run)
    return run


def new_model(s: Settings, source: Source) -> GPT:
    """--model scratch:2x64 or bytes:2x64."""
    layers, width = scratch_shape(s.model)
    text_ids, n_ctx = source.text_ids, 256 if source.text_ids else 1024
    n_ctx = max(n_ctx, source.longest(s, s.budget)) if source.by_row else n_ctx
    V = len(text_ids) if text_ids else Tokenizer().V
    model = GPT(Config(layers, 2, width, n_ctx, V), text_ids)
    if not s.window:  # with a window they made `stream` slower
        model.wave_positions()
    return model


def rules_of(s: Settings, source: Source) -> Rules:
    """Who may think, and who sees what, as the settings have it."""
    thinks = s.think_vocab > 0  # --thoughts none has no rows
    return Rules(think=s.think if thinks else "never", max_thoughts=s.max_thoughts,
                 budget=s.budget if thinks else 0, window=s.window, counts=source.counts,
                 think_after=source.think_after(s.approach, s.think),
                 persist=s.approach != "next_token", continuous=s.thoughts == "continuous",
                 reread=s.reread)


def text_at_birth(run: Run) -> tuple[Tensor, Tensor | None]:
    """Text by which thinking rows are fitted at birth: ids, mask."""
    s = run.settings
    rng = seeded(s.seed, 0, "birth")
    ids = run.source.take(16, s.prompt_tokens + s.new_tokens, rng).to(run.model.device)
    return ids, visible_text(ids, run.rules)


def give_rows(run: Run) -> dict[str, float]:
    """Add thinking rows to a base model. A model that already has them keeps them; only the gate's
    bias is reset. -> p_think on text. Raises ValueError where it has another number of rows."""
    s, model = run.settings, run.model
    ids, mask = text_at_birth(run)
    if N := model.config.think_vocab:
        if N != s.think_vocab:
            raise ValueError(f"--model {s.model} has {N} thinking rows already: leave "
                             f"--think_vocab at {N}, or start from a base model")
        # a gate of forced thinking was never trained; one of other rules does not fit
        where = run.rules.table(model.config.vocab_size, ids.device)[ids]
        return model.fit_gate(ids, s.think_prior, mask, where)
    # a seed of its own: a base that was drawn from the plain one would share its numbers with the
    # new rows. One row would then stand out in every context
    numbers = seeded(s.seed, 0, "birth").integers(2 ** 62)
    generator = torch.Generator().manual_seed(int(numbers))
    # a wider spread makes a base that can do without thoughts listen to them sooner. Where a gate
    # decides it would make p_think differ too much between contexts
    spread = 3.2 if run.rules.think == "forced" and not s.from_scratch else 2.4
    return model.grow(s.think_vocab, ids, s.think_prior, generator, mask, spread)


def make_optimizer(run: Run) -> torch.optim.Optimizer:
    """AdamW without weight decay, in two groups, as thinking rows have their own rate. Raises
    ValueError where saved moments are another model's."""
    s, model = run.settings, run.model
    # unused, its gradient is rounding errors, which Adam would make a random walk
    model.gate_bias.requires_grad_(s.think == "free")
    rows = [model.think] + ([model.gate_bias] if s.think == "free" else [])
    body = [p for p in model.parameters() if p is not model.think and p is not model.gate_bias]
    # "peak": Run.update turns rates up at birth, down at the end
    groups = [{"params": body, "peak": s.lr}]
    groups += [{"params": rows, "peak": s.think_lr}] if s.think_vocab else []
    optimizer = torch.optim.AdamW(groups, lr=s.lr, betas=(0.9, 0.98), weight_decay=0.0,
                                  fused=model.device.type == "cuda")
    run.load_moments(optimizer)
    return optimizer


# The five steps

def take_text(run: Run, sampler: GPT) -> tuple[Text, Rules]:
    """Step 1. B contexts, each G times, siblings side by side; and the rules for this text."""
    s, V = run.settings, run.model.config.vocab_size
    if s.approach == "teacher" and s.reward == "kl":
        left = run.written
        # (--resume: WORLD may be another)
        if not left or left[0].stage != run.stage or len(left[0].ids) % WORLD:
            run.written = write_text(run, sampler)
        text = run.written.pop(0)
    else:
        text = run.source.text(s, run.progress.step, run.stage).to(s.device)
    return run.own_rows(text.repeat(s.samples)), run.rules.fit(text, V)


def write_text(run: Run, sampler: GPT) -> list[Text]:
    """Texts for the next AHEAD steps, written by the student: [B, P + S] each. Its thoughts are
    dropped. Later G siblings think in each text, so only thoughts differ."""
    # many rows at once cost little more than few: written step by step, an update takes half as
    # long again. A text may be AHEAD - 1 steps old. Thoughts never are
    s, rules, source, p = run.settings, run.rules, run.source, run.progress
    ahead = replace(s, prompts=AHEAD * s.prompts)
    prompts = source.text(ahead, p.step // AHEAD, run.stage).to(s.device)
    room = rules.room_for(source.slots(prompts.S)).budget
    rules = replace(rules, budget=min(rules.budget, room))
    with run.autocast():  # [AHEAD * B, P], on cups TRIED times as many -> [.., P + S]
        ro = roll(sampler, prompts, rules, run.luck("own_text", split=False))
    text = source.grade(ro.text.cpu(), prompts).to(s.device)
    # whole contexts for each process
    steps = min(AHEAD, len(text.ids) // WORLD)
    B = len(text.ids) // steps // WORLD * WORLD
    # (cups sorts them, best first)
    return [text.each(lambda x: x[i:B * steps:steps]) for i in range(steps)]


def backward(run: Run, ro: Rollout, rules: Rules, credit: Credit, weight: Tensor, scale: Scale,
             scores: Score) -> tuple[float, float]:
    """Step 5. One forward with gradient over all rows -> loss, sum of thoughts' entropies."""
    s, total, entropy = run.settings, 0.0, 0.0
    for i in range(0, len(ro.ids), s.micro_batch):  # less memory, same gradient
        rows, judge = slice(i, i + s.micro_batch), None
        part = ro.rows(rows)
        if run.teacher is not None:
            judge = Judge(run.teacher, scores.teacher_h[rows], s.reward == "sampled")
        with run.autocast():
            h = states(run.model, part, rules)  # [rows, T, C]
            loss, H = rollout_loss(run.model, h, part, credit.rows(rows), weight[rows], scale,
                                   judge)
        loss.backward()
        total, entropy = total + loss.item(), entropy + H
    return total, entropy


def train(run: Run, extra_cost: Callable[[Rollout, Rules], Tensor] | None = None) -> None:
    """The algorithm. extra_cost: what each new place [R, T - P] costs besides --think_cost."""
    s, model, teacher, progress = run.settings, run.model, run.teacher, run.progress
    sampler = sampler_of(model, s.dtype, s.compile == "on")
    for step in run.steps():
        # 1. Take text: B contexts, each repeated for its G siblings.
        text, rules = take_text(run, sampler)  # ids [R, L], pays [R, S]

        with run.autocast(), torch.no_grad():
            # 2. Roll out: thoughts between its tokens, by a cache, without gradient.
            ro = roll(sampler, text, rules, run.luck("rollout"))  # ids [R, T]

            # 3. Score: the teacher reads the text closed up, as if there were no thoughts.
            scores = score(model, ro, text.pays, teacher, s.reward == "sampled")  # r [R, S]
            extra = extra_cost(ro, rules) if extra_cost else None

        # 4. Compare: returns minus those of the siblings.
        credit = advantages(scores.r, ro, text, s, extra)  # advantage [R, S]

        # 5. Learn: what was chosen, the text itself, and not to collapse.
        scale = scale_of(s, credit, step / progress.end, rarity_of(model, ro))
        weight = text_weights(text, s, scores.r)  # [R, S]
        loss, entropy = backward(run, ro, rules, credit, weight, scale, scores)
        update = run.update(loss, entropy)

        climb(run)
        run.note(text, scores, credit, update)


# After a step: the curriculum

def climb(run: Run) -> None:
    """Every LOOK steps: go to the first stage whose questions are not answered yet. Once the last
    stage is learned the run ends soon, unless it is lost again."""
    s, p, source = run.settings, run.progress, run.source
    p.in_stage += run.stage > 0
    if not run.stage or p.step % LOOK:
        return
    # greedy thoughts: in a long chain of drawn ones some are wrong. `enough` is strict, as errors
    # add up
    most = min(source.stages, p.stage * source.leap)
    while ((right := share_right(run)) > source.enough or run.stuck(right)) and p.stage < most:
        run.next_stage(right)
    p.accuracy = right
    if right > source.enough and p.stage == source.stages and not p.wanted:
        p.end = min(p.end, p.step + AFTER)
    elif right < LOST and not p.wanted:
        p.end = max(p.end, s.steps)


def share_right(run: Run) -> float:
    """Share of fresh questions of this stage answered right."""
    rng = seeded(run.settings.seed, run.progress.step, "quiz")
    text = run.own_rows(run.source.quiz(run.stage, QUIZ, rng).to(run.model.device))
    with run.autocast():
        hit = answers_right(run.model, text, run.rules)
    right, last = whole(hit, text.pays > 0)
    return all_rows(right)[all_rows(last)].float().mean().item()


# The command

def resume(typed: dict) -> Run:
    """--resume: the run in --out, to go on with. Raises ValueError."""
    run = reopen(typed)
    run.optimizer = make_optimizer(run)
    return run


def start(typed: dict, folder: ExitStack) -> Run:
    """What was asked for, up to the first step."""
    join_processes()
    run = resume(typed) if typed.get("resume") else None
    s = run.settings if run else resolve(typed)
    if not run:
        introduce(s, typed)
    take_folder(s, folder)
    try:
        return run or setup(s)
    except Unreached as e:
        raise ValueError(f"{e}. What needs no download: --data cups") from e


def main() -> None:
    p = parser()
    typed = vars(p.parse_args())  # what was not typed is not in it
    guarded(p, lambda folder: start(typed, folder), train)


if __name__ == "__main__":
    command.run(main, goes_on=True)
