"""Teach GPT-2 to think in tokens of its own, by reward alone.

    python train.py --think_vocab 2048                       # `teacher`: free rollouts, judged
    python train.py --approach stream --think_vocab 2048     # thoughts between the tokens of a given text
    python train.py --approach next_token --think_vocab 2048 # before each token thoughts of its own, then forgotten

    torchrun --nproc_per_node=4 train.py ...                 # a step's contexts shared out among four processes

One step: 1 take text, 2 roll out siblings, 3 score, 4 advantage, 5 one gradient step. With a GPU this is GPT-2
on WebText, without one the shipped `pico` on the built-in game `cups`; what depends on the machine is printed.

What is left out of GRPO and PPO, and why: ratio and clip (one step per rollout: the ratio is 1), the old
log-probs' forward (same reason), a reference model's KL (a teacher is in the reward; a pull to the base made
results no better in the papers that tried; --pull is there to see what it does to thoughts that begin as words), value network
(siblings are the baseline), workers.

The order of this file: what is there before the first step, what each of the five steps needs, the curriculum, what is kept,
the loop `train`, the command. Flags and their defaults are in settings.py; what a run leaves for people is journal.py's.
Knows all files up to these two.
"""
import argparse
import math
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from data import OPENING, Batch, Cups, TextFile, open_data, seeded
from evaluate import N_MAX, luck_on_text, uniforms
from journal import Journal, line_of_step, notice_dead, set_aside
from model import GPT, PICO, SIZES, Config, as_checkpoint, load, save
from reward import advantage, drift, imitation, returns_to_go, rollout_loss, slot_rewards, teacher_states
from rollout import Rollout, Rules, load_run, rollout, states, states_at, visible_text
from settings import parse, pick_up, resolve
from tokenizer import Tokenizer

WORLD, RANK = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))  # torchrun says so: processes, and which
FLOOR_STD = 0.1  # keeps noise from being blown up once all siblings agree
OFFSETS = 65  # stories on cups start at any position below: no position may mean a place in a round
SAVE_SECONDS = 60  # of work at the most are lost to kill -9


class Climb(NamedTuple):
    """When a curriculum goes on: the share of right answers that ends the first stage, and any later one; over how many steps
    that is a mean, and so how long a stage takes at the least; and for how many steps a run over given stories goes on once
    its last stage is learnt, to settle and to get crisp."""
    first: float
    later: float
    steps: int
    after: int


# strict: with five cups the first thought of a round has 60 pairs of cup and move to tell apart. At 95 % three of them may
# still share their thoughts with others, and on every longer chain such errors multiply
CLIMB = {"on": Climb(0.95, 0.85, 5, 400), "strict": Climb(0.985, 0.95, 20, 1600)}
PATIENCE = 350  # steps in one stage after the first, of thoughts that stay, before it begins again with other luck
OTHER_TEXT = 0.2  # weight, in all, of text that does not pay: on cups all but the answers, learnt as plain language


# Before the first step: models, data, rules, optimizer

def setup(a: dict, saved: dict | None) -> tuple[GPT, GPT | None, Cups | TextFile, Rules]:
    """-> model, teacher or None, data, rules. Raises ValueError, one line, for whatever does not fit together."""
    torch.manual_seed(a["seed"])
    model = first_model(a) if saved is None else load(Path(a["out"]) / "ckpt.pt")
    data = open_data(a["data"], model.text_ids, a["cups"], a["idle"], a["balls"], a["moves"])
    if isinstance(data, Cups) and model.text_ids != data.text_ids:
        model_name = f"--model {a['model']}" if saved is None else f"{a['out']}/ckpt.pt"
        more = (" with idle moves" * (a["idle"] > 0) + " and all balls" * (a["balls"] == "all")
                + " that only turn" * (a["moves"] == "turns"))
        raise ValueError(f"{model_name} does not speak the language of {a['cups']} cups{more}: try --approach stream with a "
                         "new --model scratch (or was the game in data.py another one when it was made?)")
    if isinstance(data, TextFile):
        data.tokenizer.check(model.config.vocab_size)
    if a["alphabet"] != "new":
        V = model.config.vocab_size
        a["think_vocab"] = a["think_vocab"] or V
        if a["think_vocab"] != V:
            raise ValueError(f"--alphabet {a['alphabet']} has a thinking row for each of {V} words: leave --think_vocab so")
    teacher = load_teacher(a, model)
    model = model.to(a["device"])
    rules = rules_of_run(a, data)
    check_room(a, model, teacher, data, rules)
    if saved is None and a["think_vocab"]:
        p = give_rows(a, model, data, rules)
        print(f"{a['think_vocab']} thinking rows: p_think {p['mean']:.3f} (5-95 %: {p['p05']:.3f} to {p['p95']:.3f})")
    return model, teacher, data, rules


def first_model(a: dict) -> GPT:
    """--model, as yet without thinking rows if it is a base. Raises ValueError where there is none of that name."""
    if a["model"] != "scratch":
        return load(a["model"])
    text_ids = Cups(a["cups"], idle=a["idle"], balls=a["balls"], moves=a["moves"]).text_ids if a["data"] == "cups" else None
    V = len(text_ids) if text_ids else Tokenizer().V
    model = GPT(Config(a["layers"], 2, a["width"], 256 if text_ids else 1024, V), text_ids)
    if not a["window"]:  # with one they made `stream` slower, or stuck (RESULTS.md, 5)
        model.wave_positions()
    return model


def load_teacher(a: dict, model: GPT) -> GPT | None:
    """--teacher, where the approach has one. Raises ValueError where it can't read what `model` writes."""
    if a["teacher"] is None:
        return None
    teacher = load("pico-teacher" if a["teacher"] == "pico" else a["teacher"]).to(a["device"]).requires_grad_(False)
    if teacher.text_ids != model.text_ids or teacher.config.vocab_size != model.config.vocab_size:
        raise ValueError(f"--teacher {a['teacher']} has another vocabulary than --model {a['model']}: it cannot judge its text")
    return teacher


def load_base(a: dict) -> GPT | None:
    """What the run started from, where thinking rows are words or were drawn from them. Raises ValueError."""
    return None if a["alphabet"] == "new" else load(a["model"]).to(a["device"]).requires_grad_(False)


def rules_of_run(a: dict, data: Cups | TextFile) -> Rules:
    """Who may think, and who sees what, as the settings have it. On cups thoughts stand after moves; where they are forgotten
    again, before answers."""
    cups = isinstance(data, Cups)
    rules = Rules(a["think"] if a["think_vocab"] else "never", a["max_thoughts"], a["budget"] if a["think_vocab"] else 0,
                  a["window"], data.think_after if cups else None, a["approach"] != "next_token",
                  a["thoughts"] == "continuous", a["reread"])
    if cups and not rules.persist:  # nothing that is thought after a move would be there at the question
        rules.think_after = [data.id["?"]] if rules.think == "forced" else None
    return rules


def check_room(a: dict, model: GPT, teacher: GPT | None, data: Cups | TextFile, rules: Rules) -> None:
    """The longest row of training and evaluation has to fit the context of each model. Raises ValueError."""
    cups = isinstance(data, Cups)
    longest = a["prompt_tokens"] + a["new_tokens"] + rules.budget + (OFFSETS - 1) * cups
    if cups and rules.persist:  # and the longest stories of the evaluation
        longest = max(longest, OPENING + 2 * N_MAX + 3 + (N_MAX + 2) * rules.max_thoughts * (rules.think != "never"))
    if longest > min(m.config.n_ctx for m in (model, teacher) if m is not None):
        raise ValueError(f"prompt, new tokens and thoughts can make {longest} places, more than the model's context: lower "
                         "--new_tokens, --budget or --max_thoughts")


def give_rows(a: dict, model: GPT, data, rules: Rules) -> dict[str, float]:
    """Thinking rows for a model without; one that has them keeps them, but for their offset. -> p_think on text: mean, p05,
    p95. Raises ValueError where it has another number of them."""
    ids = torch.from_numpy(data.batch(16, a["prompt_tokens"] + a["new_tokens"], a["seed"], 0, "birth").ids).to(model.device)
    mask = visible_text(ids, rules.window)
    if N := model.config.think_vocab:
        if N != a["think_vocab"]:
            raise ValueError(f"--model {a['model']} has {N} thinking rows already: leave --think_vocab at {N}, or start from "
                             "a base model")
        # the gate starts at --think_prior, where it will be asked: rows that were forced have never been asked, and to a new
        # price or to other rules a gate that was learnt does not belong either
        return model.fit_offset(ids, a["think_prior"], mask=mask, where=rules.table(model)[ids])
    # not the plain seed: a base model that was itself initialised from it would share its numbers with the new rows,
    # and one row would then stick out of all others in every context
    luck = torch.Generator().manual_seed(int(seeded(a["seed"], 0, "birth").integers(2 ** 62)))
    # logits that differ more make a base that can do without thoughts listen to them sooner; where a gate decides, they would
    # make p_think differ too much between contexts
    spread = 3.2 if rules.think == "forced" and a["model"] != "scratch" else 2.4
    return model.grow(a["think_vocab"], ids, a["think_prior"], luck, mask=mask, spread=spread, alphabet=a["alphabet"])


def load_thinker(a: dict, model: GPT, rules: Rules) -> tuple[GPT, int] | None:
    """--thinker: -> a trained model and its own window. Raises ValueError where it thinks by other rules than `model`."""
    if a["thinker"] is None:
        return None
    thinker, its, _ = load_run(Path(a["thinker"]))
    for name, own, other in (("kind of thoughts", rules.continuous, its.continuous),
                             ("--think_vocab", a["think_vocab"], thinker.config.think_vocab),
                             ("--think", rules.think, its.think), ("--max_thoughts", rules.max_thoughts, its.max_thoughts),
                             ("vocabulary", model.text_ids, thinker.text_ids)):
        if own != other:
            raise ValueError(f"--thinker {a['thinker']} has another {name} than this run"
                             + f": {other}, not {own}" * (name[0] == "-"))
    width, its_width = model.config.n_embd, thinker.config.n_embd
    if rules.continuous and its_width != width:
        raise ValueError(f"--thinker {a['thinker']} has vectors of width {its_width}, not {width}: set --width")
    return thinker.to(a["device"]).requires_grad_(False), its.window


def make_optimizer(a: dict, model: GPT, saved: dict | None = None) -> torch.optim.Optimizer:
    """AdamW with two groups, as thinking rows have a learning rate of their own, and no weight decay. Raises ValueError where
    what was saved belongs to another model."""
    # without a gate to open the offset plays no part: its gradient is rounding, which Adam would blow up to a random walk
    model.think_offset.requires_grad_(a["think"] == "free")
    rows = [model.think, model.think_offset][:1 + model.think_offset.requires_grad]
    body = [p for p in model.parameters() if all(p is not r for r in (model.think, model.think_offset))]
    groups = [{"params": body, "peak": a["lr"]}] + ([{"params": rows, "peak": a["think_lr"]}] if a["think_vocab"] else [])
    optimizer = torch.optim.AdamW(groups, lr=a["lr"], betas=(0.9, 0.98), weight_decay=0.0, fused=model.device.type == "cuda")
    if saved is not None:
        try:
            optimizer.load_state_dict(saved["optimizer"])
            fits = all(moments["exp_avg"].shape == p.shape for p, moments in optimizer.state.items())
        except (AttributeError, KeyError, TypeError, ValueError):
            fits = False
        if not fits:  # torch itself looks at the number of parameters alone
            raise ValueError("the checkpoint's optimizer does not fit its weights: they are of two runs")
    return optimizer


def first_state(a: dict) -> dict:
    """All that adapts while a run goes on, and so has to be in the checkpoint beside weights and optimizer."""
    return {"step": 0, "stage": 1, "accuracy": 0.0, "in_stage": 0, "dead": 0, "skipped": 0, "in_a_row": 0,
            "end": a["steps"], "wanted": False, "born": 0, "attempt": 0}


# 1. Take text

def shape_of_step(a: dict, cups: bool, state: dict) -> tuple[int | None, int, int, int]:
    """-> stage (None without a curriculum), S, P, B of this step. On cups a stage asks for rounds of at most `stage`
    moves, and a rollout is just long enough for one of them."""
    stage = state["stage"] if cups and a["curriculum"] != "off" else None
    S = min(a["new_tokens"], 2 * stage + 6) if stage else a["new_tokens"]
    # cups: the first two stages, and half of the steps later on, start at a story's very beginning
    P = OPENING if cups and (state["step"] % 2 == 0 or (stage or 3) < 3) else a["prompt_tokens"]
    # longer rounds hold more thoughts to learn from, so a step takes fewer of them, but never less than 64 rows. A given text
    # costs nothing to write: 128 while the curriculum climbs. (With 64 rows one of five seeds of `stream` got stuck.)
    least = 128 if a["teacher"] is None and stage != a["swaps"] else 64
    B = max(min(max(1, least // a["samples"]), a["prompts"]), a["prompts"] * 8 // S) if stage else a["prompts"]
    return stage, S, P, -(-B // WORLD) * WORLD  # each process has whole contexts, and as many as the others


def contexts(a: dict, model: GPT, data, rules: Rules, B: int, P: int, S: int, step: int, stage: int | None,
             offset: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """-> text [R, P + S], or [R, P] where each sibling writes its own; on cups, where the text is all there, also which
    slots pay and moves before each answer, [R, S], and, where it is the data's, the state (of one ball its cup) after each
    token, [R, P + S]."""
    batch = take_text(a, data, B, P, step, S, stage)
    if a["teacher"] is not None and a["siblings"] == "shared":
        # one sibling writes the text, then all G think anew between its tokens: they differ in thoughts alone
        batch = own_text(a, model, data, batch, B, P, rules, S, step, stage, offset)
    text, pays, n, cup = (torch.from_numpy(x).to(model.device).repeat_interleave(a["samples"], 0) if x is not None else None
                          for x in (batch.ids, batch.pays, batch.n, batch.state))
    return (text, pays[:, P:], n[:, P:], cup) if pays is not None and text.shape[1] == P + S else (text, None, None, None)


def take_text(a: dict, data, B: int, P: int, step: int, S: int, stage: int | None) -> Batch:
    """B contexts for this step: whole windows of given text, prompts for teacher (3 B where own_text has to choose)."""
    cups = {"prompt": P} if isinstance(data, Cups) else {}
    if a["approach"] != "teacher":
        return data.batch(B, P + S, a["seed"], step, "train", **cups, **({"n_max": stage} if stage else {}))
    return data.batch(3 * B if stage and a["siblings"] == "shared" else B, P, a["seed"], step, "train", **cups)


def own_text(a: dict, model: GPT, data, batch: Batch, B: int, P: int, rules: Rules, S: int, step: int, stage: int | None,
             offset: int) -> Batch:
    """The student's own continuation of B prompts, [B, P + S]. On cups the answers are what pays. With a curriculum 3 B texts
    are written; the B with the longest first round of at most `stage` moves stay, and longer rounds do not pay yet."""
    R = len(batch.ids)
    if isinstance(data, Cups):  # no places that stay idle
        rules = replace(rules, budget=min(rules.budget, rules.with_room(S).budget))
    u = uniforms(a["seed"], step, "own_text", rules.draws(S), R, model.device)
    prompts = torch.from_numpy(batch.ids).to(model.device)
    text = rollout(model, prompts, P, S, rules, u, a["temperature"], offset=offset).text.cpu().numpy()
    if not isinstance(data, Cups):
        return Batch(text)
    n = np.zeros(text.shape, int)  # moves before each answer
    for row, moves in zip(text.tolist(), n):
        for place, k, _ in data.check(row):
            moves[place] = k
    first = np.array([next((k for k in moves[P:] if k), 99) for moves in n])  # 99: it never asked
    chosen = np.argsort(np.where(first <= (stage or 99), -first, first), kind="stable")[:B]
    return Batch(text[chosen], (n[chosen] > 0) & (n[chosen] <= (stage or 99)), None, n[chosen])


# 2. Roll out siblings

def rules_of_step(model: GPT, rules: Rules, text: torch.Tensor, P: int, S: int, stage: int | None) -> Rules:
    """The run's rules, without thoughts that this step can't use: what is known beforehand makes shorter rollouts."""
    if rules.think == "forced" and rules.persist and text.shape[1] == P + S:
        slots = int(rules.table(model)[text[:, P - 1:-1]].sum(1).max())  # all text is known, and so the number of thoughts
        return replace(rules, budget=min(rules.budget, slots * rules.max_thoughts))
    if rules.reread and stage:
        return replace(rules, max_thoughts=min(rules.max_thoughts, stage + 1))
    return rules


def tell(model: GPT, cup: torch.Tensor):
    """The oracle, as an `edit` for the rollout: each thought becomes the cup that the ball is under by then (of all balls,
    their order). cup [R, P + S]."""
    V, used = model.config.vocab_size, torch.zeros(len(cup), dtype=torch.long, device=cup.device)

    def told(place: int, ids: torch.Tensor) -> torch.Tensor:
        # thoughts come in order: what is no thought before a place is text
        slot = (place - 1 - used).clamp(max=cup.shape[1] - 1)
        used.add_(ids >= V)
        return V + cup.gather(1, slot.unsqueeze(1)).squeeze(1).clamp(min=0)
    return told


# 3. Score (reward.py); the rows of all processes come together

def gather(x: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in order: [R / WORLD, ...] -> [R, ...]."""
    if WORLD == 1:
        return x
    rows = [torch.empty_like(x, dtype=torch.uint8 if x.dtype == torch.bool else x.dtype) for _ in range(WORLD)]
    dist.all_gather(rows, x.to(rows[0].dtype).contiguous())
    return torch.cat(rows).to(x.dtype)


def gather_rollout(ro: Rollout) -> Rollout:
    """What step 4 has to know of everybody's rollouts; hidden states stay where they are."""
    if WORLD == 1:
        return ro
    light = replace(ro, h=ro.h[:, :0])
    return Rollout(*(gather(getattr(light, f.name)) for f in fields(light)[:-1]), ro.P)


# 4. Advantage

def advantages(a: dict, ro: Rollout, r: torch.Tensor,
               far: torch.Tensor | None = None) -> tuple[torch.Tensor, int, torch.Tensor]:
    """r [R, S] -> A [R, S], divided by its spread over what was chosen; the number of choices; returns [R, S].
    far [R, T - P]: each thought's drift from the base, which --pull puts a price on."""
    slot = ro.new_slot()
    cost = torch.zeros_like(r).scatter_add(1, slot, ro.is_think[:, ro.P:].to(r.dtype)) * a["think_cost"]
    cost = cost if far is None else cost.scatter_add(1, slot, a["pull"] * far)
    returns = returns_to_go(r - cost, a["gamma"])
    adv = advantage(returns, a["samples"], a["baseline"])
    spoken = ro.is_text & ~ro.given & (a["text_grad"] == "sampled")  # own text as a choice like any other
    felt = adv.gather(1, slot)[(ro.is_think | ro.gated | spoken)[:, ro.P:]]
    if a["thoughts"] == "oracle" or a["thinker"]:  # a thought that is told is worth saying: -log g, as in supervised learning
        return torch.ones_like(r), len(felt), returns
    return adv / (felt.std(correction=0) + FLOOR_STD) if len(felt) else adv, len(felt), returns


# 5. One gradient step

def entropy_scale(a: dict, step: int, end: int, stage: int | None) -> tuple[float, float]:
    """(weight of the entropy bonus, its target in nats). The target is twice as broad in the first stage, where states
    that come to share a code would rarely part again. In the last quarter of a run the bonus fades: crisp thoughts."""
    weight = (a["thoughts"] == "tokens") * min(1.0, 4 * (1 - step / end))
    return weight, (2 if stage == 1 else 1) * a["entropy"] * math.log(max(a["think_vocab"], 2))


def text_weights(a: dict, r: torch.Tensor, pays: torch.Tensor | None, frontier: torch.Tensor | None) -> torch.Tensor:
    """[R, S]: what each text token's own r weighs in the loss: 1 over all that pay, OTHER_TEXT over all others.
    frontier [R, S]: answers to the longest rounds of a stage. They end in thoughts that say nothing yet, and a reader that
    learnt the answer from those would unlearn to listen."""
    paying = pays.sum().item() if pays is not None else r.numel()
    weight = torch.full_like(r, OTHER_TEXT / max(r.numel() - paying, 1))
    weight[... if pays is None else pays] = (a["answer_grad"] == "on") / max(paying, 1)
    return weight if frontier is None else weight.masked_fill(frontier, 0)


def set_rates(optimizer: torch.optim.Optimizer, a: dict, state: dict) -> None:
    """Learning rates rise in the first steps after birth, and fall in the last fifth of the run."""
    warm = min(1.0, (state["step"] - state["born"] + 1) / a["warmup"]) * min(1.0, 5 * (1 - state["step"] / state["end"]) + 0.05)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * warm


def gradient_pass(a: dict, model: GPT, teacher: GPT | None, ro: Rollout, adv: torch.Tensor, weight: torch.Tensor,
                  t_states: torch.Tensor | None, scale: dict, rules: Rules, offset: int, autocast) -> tuple[float, float]:
    """Backward through one forward over all rows, in pieces of micro_batch rows -> loss, sum of thoughts' entropies."""
    loss_sum, entropy = 0.0, 0.0
    for i in range(0, len(ro.ids), a["micro_batch"]):
        part = ro.rows(i, i + a["micro_batch"])
        adv_i, weight_i, t_i = (x[i:i + a["micro_batch"]] if x is not None else None for x in (adv, weight, t_states))
        lent = states_at(part.h, part.left) if a["thinker"] and rules.continuous else None  # the thinker's vectors
        with autocast:
            h = states(model, part, rules, offset, lent)
            loss, H = rollout_loss(model, h, part, adv_i, weight_i, scale, teacher, t_i, a["beta"], a["text_grad"] == "sampled")
            loss = loss + scale["policy"] * imitation(h, part, lent) if lent is not None else loss
        loss.backward()
        loss_sum, entropy = loss_sum + loss.item(), entropy + H
    return loss_sum, entropy


def sum_gradients(model: GPT, *numbers: float) -> list[float]:
    """Everybody's gradients, in place, and these numbers, summed. (DistributedDataParallel would average, and wants one forward
    a step; here a forward is in pieces, and each term is divided by the whole batch's count already.)"""
    if WORLD == 1:
        return list(numbers)
    numbers = torch.tensor(numbers, device=model.device)
    for x in [*(p.grad for p in model.parameters() if p.grad is not None), numbers]:
        dist.all_reduce(x)
    return numbers.tolist()


def step_or_skip(model: GPT, optimizer: torch.optim.Optimizer, loss: float, state: dict) -> float:
    """One step of the optimizer -> the gradient's norm. One NaN would spoil all weights and Adam's moments for good, so a step
    whose loss or gradient isn't finite is left out and counted. Raises FloatingPointError after 10 in a row."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    if math.isfinite(loss) and math.isfinite(norm):
        optimizer.step()
        state["in_a_row"] = 0
        return norm
    state |= {"skipped": state["skipped"] + 1, "in_a_row": state["in_a_row"] + 1}
    if state["in_a_row"] == 10:
        raise FloatingPointError(f"10 steps in a row, up to step {state['step']}, had no finite loss or gradient: try a lower "
                                 "--lr and --think_lr, or --dtype float32")
    return norm


# After a step: the curriculum

def climb(a: dict, model: GPT, optimizer: torch.optim.Optimizer, rules: Rules, state: dict, stage: int,
          right: torch.Tensor) -> None:
    """The curriculum after a step of `stage`: the next stage, over given stories also the end of the run (which only ever comes
    nearer), and in `stream` of one ball and at most three cups, unless it is strict, a second chance where a stage does not
    end."""
    advance(state, right, a["swaps"], a["curriculum"])
    if a["teacher"] is not None:
        return
    if stage == a["swaps"] and state["accuracy"] > 0.9 and not state["wanted"]:
        state["end"] = min(state["end"], state["step"] + CLIMB[a["curriculum"]].after)
    named = a["model"] in ("scratch", *PICO, *SIZES)  # of any other its file may be another one by now
    stuck = 1 < state["stage"] < a["swaps"] and state["in_stage"] > PATIENCE
    # (harder worlds take longer: of all three balls one stage took 1,200 steps, a strict one 2,000, and both ended well)
    easy = a["cups"] <= 3 and a["balls"] == "one" and a["curriculum"] == "on"
    if named and easy and stuck and a["thoughts"] == "tokens" and rules.persist:
        begin_again(a, model, optimizer, state)


def advance(state: dict, right: torch.Tensor, last: int, curriculum: str = "on") -> None:
    """The curriculum: on to the next stage once its own answers are right. right: bool, answers after `stage` moves."""
    its = CLIMB[curriculum]
    state["in_stage"] += 1
    if len(right):
        state["accuracy"] = (1 - 1 / its.steps) * state["accuracy"] + 1 / its.steps * right.float().mean().item()
    # the first stage has to be nearly perfect: what is wrong in it multiplies along every longer chain
    enough = its.first if state["stage"] == 1 else its.later
    if state["accuracy"] > enough and state["in_stage"] >= its.steps and state["stage"] < last:
        state |= {"stage": state["stage"] + 1, "accuracy": 0.5, "in_stage": 0}


def begin_again(a: dict, model: GPT, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Throw the weights away and start with other ones, at stage 1. Now and then a seed of `stream` comes by a code in which
    some states share their thoughts; it creeps out of that in 1,000 steps or never, and a fresh start takes 600. It gets
    --steps of its own, but all starts together no more than twice that: some worlds are too hard for every start."""
    if not state["wanted"]:
        state["end"] = min(state["step"] + a["steps"], 2 * a["steps"])
    state |= {"stage": 1, "accuracy": 0.0, "in_stage": 0, "born": state["step"], "attempt": state["attempt"] + 1}
    tqdm.write(f"step {state['step']}: this stage has taken {PATIENCE} steps, so it begins again with other luck")
    fresh = setup(a | {"seed": a["seed"] + 10_000 * state["attempt"]}, None)[0]
    with torch.no_grad():
        for p, new in zip(model.parameters(), fresh.parameters()):
            p.copy_(new)
    optimizer.state.clear()


# After a step: stop? look, save

def asked_to_stop(stop: list[int] | None, device) -> bool:
    """Did a signal come, to any of the processes?"""
    return bool(stop) if WORLD == 1 else bool(gather(torch.tensor([bool(stop)], device=device)).any())


def look_and_save(journal: Journal, a: dict, state: dict, stopping: bool, model: GPT, teacher: GPT | None, data, rules: Rules,
                  optimizer: torch.optim.Optimizer, base: GPT | None) -> None:
    """An evaluation every eval_every steps and at the end; a checkpoint there, where the run is to stop, and once a minute.
    Every keep_every steps one that no later one replaces. Raises OSError where one can't be written."""
    due = state["step"] % a["eval_every"] == 0 or state["step"] == state["end"]
    sound = not state["in_a_row"]  # spoilt weights, which show in the next loss, must not replace a good checkpoint
    if due:
        journal.measure(a, state["step"], state["step"] == state["end"], model, teacher, data, rules, base)
        sound = math.isfinite(journal.evals[-1]["nats_without_thoughts"])
        tqdm.write(f"step {state['step']}: "
                   + ", ".join(f"{k} {v:.3f}" for k, v in journal.evals[-1].items() if isinstance(v, float) and k != "seconds"))
    if sound and a["keep_every"] and state["step"] % a["keep_every"] == 0:
        # before ckpt.pt: a run that goes on from there does not come by this step again
        save(journal.out / f"ckpt_{state['step']:06}.pt", as_run(a, model, rules, state))
    if sound and (due or stopping or time.time() - journal.saved > SAVE_SECONDS):
        save(journal.out / "ckpt.pt", whole_run(a, model, rules, state, optimizer))
        journal.saved = time.time()


def as_run(a: dict, model: GPT, rules: Rules, state: dict) -> dict:
    """All that is asked of a checkpoint, but by --resume: a third of the size."""
    return as_checkpoint(model) | {"args": a, "rules": asdict(rules), "state": state}


def whole_run(a: dict, model: GPT, rules: Rules, state: dict, optimizer: torch.optim.Optimizer) -> dict:
    """All that --resume needs as well."""
    return as_run(a, model, rules, state) | {"optimizer": optimizer.state_dict()}


# The loop

def train(a: dict, saved: dict | None, out: Path, model: GPT, teacher: GPT | None, data, rules: Rules,
          thinker: tuple[GPT, int] | None = None, stop: list[int] | None = None, base: GPT | None = None) -> None:
    """The algorithm. thinker: see `load_thinker`; stop: see `ask_to_stop`; base: see `load_base`."""
    G, thinking, dev, cups = a["samples"], a["thoughts"] == "tokens", model.device, isinstance(data, Cups)
    optimizer = make_optimizer(a, model, saved)
    state = first_state(a) | (saved["state"] if saved is not None else {})
    actor, window = thinker or (model, rules.window)  # who thinks, and how far back it sees
    sampler = torch.compile(actor) if a["compile"] == "on" else actor
    autocast = torch.autocast(dev.type, torch.bfloat16) if a["dtype"] == "bfloat16" else nullcontext()
    if dev.type == "cuda":  # for products in place, which autocast leaves in float32 (reward._Pieces)
        torch.set_float32_matmul_precision("high")
    chief = RANK == 0  # writes the log, the checkpoint and the bar
    if saved is None and chief:  # before the log begins anew: at any moment the two belong to one run
        save(out / "ckpt.pt", whole_run(a, model, rules, state, optimizer))
    journal = Journal(out, state["step"]) if chief else None
    if chief and not journal.evals:
        journal.measure(a, state["step"], True, model, teacher, data, rules, base)
    bar, stopping = tqdm(total=state["end"], initial=state["step"], desc=a["approach"], disable=not chief), False
    while state["step"] < state["end"] and not stopping:
        step = state["step"]
        # 1. B contexts of text, each repeated for its G siblings
        stage, S, P, B = shape_of_step(a, cups, state)
        R = B * G
        offset = int(seeded(a["seed"], step, "offset").integers(OFFSETS)) if cups else 0  # of GPT-2's places 0 is special
        with autocast:
            text, pays, n, cup = contexts(a, sampler, data, rules, B, P, S, step, stage, offset)

        # 2. G rollouts each, no gradient, cached
        now = rules_of_step(model, rules, text, P, S, stage)
        mine = slice(RANK * R // WORLD, (RANK + 1) * R // WORLD)  # of R rows: all, where there is one process
        u = luck_on_text(a["seed"], step, "rollout", now, R, S, dev)  # [steps, R, 2]; of branches [K, R * S, 2]
        u = u.unflatten(1, (R, -1))[:, mine].flatten(1, 2)
        told = tell(model, cup[mine]) if a["thoughts"] == "oracle" else None
        with autocast:
            ro = rollout(sampler, text[mine], P, S, replace(now, window=window), u, a["temperature"], offset=offset, siblings=G,
                         edit=told)

        # 3. score: the teacher sees the text closed up, as if no thought had been there
        with autocast:
            t_states = teacher_states(teacher, ro, G if a["siblings"] == "shared" else 1) if teacher is not None else None
            r, hit = slot_rewards(actor, ro, teacher, t_states, pays[mine] if pays is not None else None, a["beta"],
                                  a["text_grad"] == "sampled")
            far = gather(drift(model, base, ro, now, offset)) if a["pull"] else None
        r, hit, everyone = gather(r), gather(hit), gather_rollout(ro)

        # 4. returns, siblings as baseline, advantage
        adv, felt, returns = advantages(a, everyone, r, far)

        # 5. one forward with gradient, one step
        thoughts, (fade, target) = int(everyone.is_think.sum()), entropy_scale(a, step, state["end"], stage)
        frontier = pays & (n == stage) if n is not None and (stage or 1) > 1 and thinking and rules.persist else None
        scale = {"policy": 1 / max(felt, 1), "entropy": fade / max(thoughts, 1), "target": target}
        set_rates(optimizer, a, state)
        optimizer.zero_grad(set_to_none=True)
        loss, entropy = gradient_pass(a, model, teacher, ro, adv[mine], text_weights(a, r, pays, frontier)[mine], t_states,
                                      scale, now, offset, autocast)
        loss, entropy = sum_gradients(model, loss, entropy)
        norm = step_or_skip(model, optimizer, loss, state)

        state["step"] += 1
        if n is not None and stage:
            climb(a, model, optimizer, rules, state, stage, hit[pays & (n == stage)])
        line = line_of_step(state, r, pays, returns, G, loss, entropy, thoughts, norm)
        stopping = asked_to_stop(stop, dev)
        if chief:
            journal.write("step", step, line)
            notice_dead(state, bool(thoughts and thinking and G > 1 and line["spread"] < 0.002))
            look_and_save(journal, a, state, stopping, model, teacher, data, rules, optimizer, base)
        bar.total = state["end"]
        bar.set_postfix({k: f"{line[k]:.3g}" for k in ("reward", "spread", "entropy", "stage", "skipped")}, refresh=False)
        bar.update()
    bar.close()
    if state["step"] < state["end"]:
        print(f"stopped after step {state['step']}; go on with: python train.py --resume --out {out}")
        sys.exit(128 + (stop or [signal.SIGTERM])[0])
    if WORLD > 1:
        dist.destroy_process_group()
    if chief:
        journal.close(a["think"] == "forced")


# The command

def join_processes() -> None:
    """torchrun: find the others; the first one alone speaks. Raises ValueError where there are fewer GPUs than processes."""
    gpus, here = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus and here >= gpus:
        raise ValueError(f"torchrun started more processes than there are GPUs: --nproc_per_node={gpus} at the most")
    if gpus:
        torch.cuda.set_device(here)
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")  # (--device cpu is allowed beside a GPU)
    if RANK:
        sys.stdout = open(os.devnull, "w")


@contextmanager
def held(out: Path):
    """While it lasts, the folder belongs to this run: two that write one log and one checkpoint would spoil both. The system
    lets go with the process, also at kill -9. Raises ValueError where another run has it. (Windows and some network file
    systems have no such lock.)"""
    if os.name != "posix" or RANK:
        yield
        return
    import fcntl
    folder = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise ValueError(f"{out}/ is in use by a run that goes on: choose another --out, or wait until it ends") from e
        yield
    finally:
        os.close(folder)


def is_own(path: str, out: Path) -> bool:
    """Is this one of the files that a run in `out` writes its checkpoints to, or their folder?"""
    file = Path(path) / "ckpt.pt" if Path(path).is_dir() else Path(path)
    return any(x.parent.resolve() == out.resolve() and x.match("ckpt*.pt") for x in (file, file.resolve()))


def ask_to_stop() -> list[int]:
    """-> a list that gets the number of a signal, Ctrl-C or SIGTERM. The run looks at it after each step, saves and ends; a
    second signal finds no one who would wait, and ends the process at once."""
    asked, signals = [], (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, _) -> None:
        asked.append(number)
        for s in signals:
            signal.signal(s, signal.SIG_DFL)
    for s in signals:
        signal.signal(s, ask)
    return asked


def main() -> None:
    """Exit codes: 0 done; 1 the run broke off, what was saved is whole; 2 refused before the first step; 130, 143 stopped by
    Ctrl-C or SIGTERM, and saved."""
    with ExitStack() as folder:
        command(parse(), folder)


def command(args: argparse.Namespace, folder: ExitStack) -> None:
    """What was asked for, from the first look at it to the exit code. folder: what is held until the end."""
    saved, out = None, args.out
    try:
        if WORLD > 1:
            join_processes()
        if args.resume:
            a, saved = pick_up(args)
        else:
            a = resolve(args) | {"out": str(out)}
        out.mkdir(parents=True, exist_ok=True)
        folder.enter_context(held(out))
        for path in (a["teacher"], a["thinker"]):
            if path and is_own(path, out):
                raise ValueError(f"{path} is judge or thinker of this run, which would write over it: choose another --out")
        model, teacher, data, rules = setup(a, saved)
        thinker, base = load_thinker(a, model, rules), load_base(a)
        make_optimizer(a, model, saved)  # moments of another model? text too short? better now than after an hour
        take_text(a, data, 1, a["prompt_tokens"], 0, a["new_tokens"], None)
        data.batch(1, a["prompt_tokens"] + a["new_tokens"], 0, 0, "eval")
    except (ValueError, OSError) as e:
        args.error(str(e))
    except (RuntimeError, MemoryError) as e:
        if "allocate" not in str(e):
            raise
        args.error(f"such a model or its data do not fit into memory ({str(e).splitlines()[0]})")
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        if saved is None and RANK == 0:
            set_aside(out)
        return train(a, saved, out, model, teacher, data, rules, thinker, ask_to_stop(), base)
    except (OSError, FloatingPointError) as e:
        broken = str(e)
    sys.exit(f"train.py: {broken}; --resume goes on from the last checkpoint")  # by now the bar is gone, and has ended its line


if __name__ == "__main__":
    main()
