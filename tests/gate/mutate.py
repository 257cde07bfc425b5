"""Do the tests test anything? Plants one mistake at a time in a copy of the repository, and expects
its tests to fail.

    python tests/gate/mutate.py            # all of them: 5 to 30 seconds each
    python tests/gate/mutate.py 3 7        # the third and the seventh

It needs all of tests/requirements.txt: where transformers is missing, the tests against it are
skipped and catch nothing.

A mistake is one exact string that becomes another. Where that string does not occur exactly once
any more, this ends with an error: the list has to follow the code. The other half of the question,
which lines are never run: pip install coverage, then

    coverage run --source . -m pytest -q tests && coverage report

Left out on purpose: mistakes made by a machine, most of which change nothing.
"""
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent.parent
LOST, CLI = "gate/test_nothing_lost.py", "gate/test_cli.py"
END, BASE = "gate/test_command.py", "gate/test_weights.py"
MUTANTS = [  # what is wrong, file, string, what it becomes, tests that must notice
    # what a thought is worth
    ("a return with the wrong sign", "reward.py", "running = r[:, i] + gamma * running",
     "running = r[:, i] - gamma * running", "test_6_reward.py"),
    ("the mean over contexts, not over siblings", "reward.py",
     "grouped - grouped.mean(1, keepdim=True)", "grouped - grouped.mean(0, keepdim=True)",
     "test_6_reward.py"),
    ("oneself in one's own baseline", "reward.py", " * (G / (G - 1))", "", "test_6_reward.py"),
    ("the price of entropy is not detached", "reward.py", "entropy_price(H.detach(), scale.target)",
     "entropy_price(H, scale.target)", "test_6_reward.py"),
    ("the teacher sees the thoughts", "reward.py", "teacher(ro.text[::ro.siblings, :-1])",
     "teacher(ro.ids[::ro.siblings, :ro.text.shape[1] - 1] % teacher.config.vocab_size)",
     "test_6_reward.py"),
    ("a token is scored from its own state", "reward.py",
     "states_at(h, ro.chosen_at.gather(1, ro.place[:, ro.P:]))",
     "states_at(h, ro.place[:, ro.P:])", "test_6_reward.py"),
    ("the policy is pushed the wrong way", "reward.py", "-scale.policy * policy",
     "scale.policy * policy", "test_6_reward.py"),
    ("a thought is paid for its cost", "reward.py", "returns_to_go(r - cost,",
     "returns_to_go(r + cost,", "test_6_reward.py"),
    ("all siblings teach alike", "reward.py", "(LISTEN * siblings)", "(0 * siblings)",
     "test_6_reward.py"),
    ("rows that are often thought are paid", "reward.py", "return -torch.log(used",
     "return torch.log(used", "test_6_reward.py"),
    ("siblings that are right are behind", "reward.py", "far = (batch.mean(0) - best)",
     "far = (best - batch.mean(0))", "test_6_reward.py"),
    ("one text stands in all steps", "train.py", "i:B * steps:steps", "0:B * steps:steps",
     "test_8_train.py"),
    ("the frontier trains the reader", "reward.py",
     "weight.masked_fill((text.pays > 0) & (text.level == text.unread), 0)", "weight",
     "test_6_reward.py"),
    ("the gate's log-prob is that of the other choice", "reward.py",
     "torch.where(is_think, gap, -gap)", "torch.where(is_think, -gap, gap)",
     "test_7_estimator.py"),
    ("sampled text is no choice", "reward.py",
     "(ro.is_think | ro.gated | spoken)", "(ro.is_think | ro.gated)", "test_6_reward.py"),
    # thoughts
    ("the window is one token too wide", "rollout.py", "(back < rules.window)",
     "(back <= rules.window)", "test_4_rollout.py"),
    ("a step begins at its open slot, not behind it", "rollout.py", "F.pad(ends, (1, -1))", "ends",
     "test_4_rollout.py"),
    ("a thought moves a text on", "rollout.py", "if rules.shifts:\n        return torch.arange",
     "if True:\n        return torch.arange", "test_4_rollout.py"),
    ("a stage that gets better is stuck", "run.py", "if right > p.best:", "if False:",
     "gate/test_task.py::test_stages"),
    ("a stage forgets its window in the quiz", "evaluate.py",
     "rules = replace(rules, window=text.window or rules.window)", "rules = replace(rules)",
     "gate/test_task.py::test_first_stage_of_two_thoughts"),
    ("one thought over the budget", "rollout.py",
     "(self.used < rules.budget)", "(self.used <= rules.budget)", "test_4_rollout.py"),
    ("rounding may draw what has weight 0", "fast.py",
     "(ends.gather(1, b) - sums.gather(1, b))).clamp(min=0)",
     "(ends.gather(1, b) - sums.gather(1, b)))",
     "test_4_rollout.py::test_zero_weights_between_blocks"),
    ("a process draws what another one draws", "rollout.py", "[:, self.part]", "[:, 0]",
     "test_4_rollout.py"),
    ("no mask in the gradient pass", "next_token.py", "return model(ro.ids, positions, mask)",
     "return model(ro.ids, positions)", "test_4_rollout.py"),
    ("siblings read a prompt of others", "next_token.py",
     "torch.cat([h.repeat_interleave(G, 0), rest]", "torch.cat([h.repeat(G, 1, 1), rest]",
     "test_5_next_token.py"),
    ("branches see each other", "next_token.py",
     "(branch[:, None] == branch) & (step[:, None] >= step)", "(step[:, None] >= step)",
     "test_5_next_token.py"),
    ("a branch that rereads chooses at each step", "next_token.py",
     "if free and not (rules.reread and k):", "if free:", "test_5_next_token.py"),
    ("a thought that rereads a text counts as one", "next_token.py",
     "ends + ~is_text * rules.shifts", "ends + ~is_text", "test_5_next_token.py"),
    ("a branch that rereads sees its other thoughts", "next_token.py",
     "own & (step[:, None] == step)", "own", "test_5_next_token.py"),
    # the model
    ("the exact GELU", "model.py", 'approximate="tanh"', 'approximate="none"', "test_2_model.py"),
    ("thinking rows without mean(wte)", "model.py", "self.set_rows((w.float().mean(0) + noise)",
     "self.set_rows((noise)", "test_2_model.py"),
    ("a pickle may run code", "weights.py", "weights_only=True)", "weights_only=False)",
     f"{LOST}::test_sealed_code_is_not_run"),
    ("the checksum is not compared", "weights.py", "digest(f, size) != end",
     'digest(f, size) == b""', f"{LOST}::test_damage_is_seen"),
    # text
    ("training sees the held-out text", "data.py",
     "self.train, self.eval = self.train[:cut],", "self.train, self.eval = self.train,",
     "gate/test_files.py"),
    ("random numbers that forget their purpose", "data.py",
     "[seed, step, PURPOSES.index(purpose)]", "[seed, step]", "test_3_data.py"),
    ("a turn goes the other way", "data.py", "(i + k) % m", "(i - k) % m", "test_3_data.py"),
    ("siblings do not stand side by side", "data.py", "x.repeat_interleave(G, 0)",
     "x.repeat(G, *[1] * (x.dim() - 1))", "test_8_train.py"),
    ("markup in a sample is not escaped", "tokenizer.py", "{html.escape(s)}", "{s}",
     f"{LOST}::test_markup_is_shown_and_not_run"),
    # a run
    ("gradients of earlier steps are kept", "run.py",
     "        self.optimizer.zero_grad(set_to_none=True)\n", "", "test_8_train.py"),
    ("a step with a NaN is taken", "run.py",
     "if math.isfinite(loss) and math.isfinite(norm):", "if True:",
     f"{LOST}::test_steps_are_skipped"),
    ("a new run leaves the old one's checkpoint next to its own log", "run.py",
     'save(self.out / "ckpt.pt", self.whole())\n        text', "pass\n        text",
     f"{LOST}::test_another_run_in_the_same_folder"),
    ("an evaluation is lost on resume", "run.py", '"eval": step + 1}', '"eval": step}',
     f"{LOST}::test_stopped_and_resumed {LOST}::test_killed_and_resumed"),
    ("the text of an earlier rollout is replayed", "fast.py", "            a.copy_(b)\n",
     "            pass\n", "test_4_rollout.py::test_a_recorder_keeps_its_tensors"),
    ("copies of weights grow old", "fast.py", "            torch._foreach_copy_(to, of)",
     "            pass", "test_4_rollout.py::test_copies_of_weights"),
    ("a chain of vectors is cut after its first", "next_token.py", "for _ in range(longest)",
     "for _ in range(1)", "test_5_next_token.py::test_at_once_is_one_by_one"),
    ("a code that is lost again ends the run", "train.py", "elif right < LOST", "elif right < 0",
     "test_8_train.py::test_what_is_lost_again_is_no_end"),
    ("the curriculum begins again on resume", "run.py",
     'Progress(**{"end": settings.steps, **progress})',
     'Progress(settings.steps, progress.get("step", 0))', f"{LOST}::test_resume_keeps_the_stage"),
    ("a run without its progress is resumed", "run.py", "if complete else None", "or {}",
     f"{LOST}::test_resume_refuses_what_does_not_fit"),
    ("the optimizer's moments are not fitted", "run.py",
     'all(x["exp_avg"].shape == p.shape for p, x in optimizer.state.items())', "True",
     f"{LOST}::test_resume_refuses_what_does_not_fit"),
    ("a flag that means nothing is taken", "settings.py",
     "    refuse_what_means_nothing(s, typed,", "    (lambda *_: None)(s, typed,",
     f"{CLI}::test_train_refuses"),
    ("sampled thoughts are not those asked for", "sample.py",
     "table[V + int(old)] = V + int(new)", "table[V + int(new)] = V + int(old)",
     f"{CLI}::test_sample_shows_thoughts"),
    # what other people's files and machines do
    ("a setting of config.json is not looked at", "weights.py",
     '"layer_norm_epsilon": (1e-5,), ', "", f"{BASE}::test_equal_or_refused"),
    ("an untied head is dropped", "weights.py",
     'if head is not None and not torch.equal(head, state["wte.weight"])', "if False",
     f"{BASE}::test_equal_or_refused"),
    ("weights may be NaN", "weights.py", "if not is_finite(v.float())", "if False",
     f"{BASE}::test_equal_or_refused"),
    ("integers pass for weights", "weights.py", "if v.dtype not in FLOATS or", "if",
     f"{BASE}::test_equal_or_refused"),
    ("another language's words", "weights.py", "        check_words(folder)\n", "        pass\n",
     f"{BASE}::test_equal_or_refused"),
    ("an export hides behind an older file", "lab/export.py",
     "    if others:\n", "    if False:\n", "lab/test_export.py::test_nothing_is_read_instead"),
    ("an export has no gate", "lab/export.py", "] += model.gate_bias.double()",
     "] += 0 * model.gate_bias.double()", "lab/test_export.py::test_a_gate_is_folded"),
    ("a window is exported", "lab/export.py", "    if rules.window:", "    if False:",
     "lab/test_export.py::test_thoughts_that_cannot_go_along"),
    ("two tensors stand in one place", "weights.py", "if a != end or b >", "if b >",
     f"{BASE}::test_no_header_is_guessed"),
    ("answers are written over a checkpoint", "sample.py",
     "check_rows(args.jsonl[1], args.jsonl[0])", "pass",
     "gate/test_task.py::test_answers_to_a_file"),
    ("a curriculum leaps to its end", "task.py", "leap = 0.95, 2", "leap = 0.95, 99",
     "gate/test_task.py::test_stages"),
    ("a stage before the last one ends a run", "train.py", "and p.stage == source.stages and",
     "and", "gate/test_task.py::test_stages"),
    ("what fails on a task is not widened", "reward.py", "elif text.stage > 1:",
     "elif False:", "test_6_reward.py"),
    ("each process has its own hardest rows", "reward.py", "all_rows(level).max()", "level.max()",
     "test_6_reward.py"),
    ("few that are right widen as much", "reward.py", "(average * far", "(far", "test_6_reward.py"),
    ("a long chain is widened as a whole", "reward.py", "device=r.device) == last)",
     "device=r.device) >= 0)", "test_6_reward.py"),
    ("easy rows are widened for hard ones", "reward.py", "interleave(G) * here)",
     "interleave(G))", "test_6_reward.py"),
    ("a long row is behind a short one", "reward.py", "if text.stage and text.real is None:",
     "if text.stage:", "gate/test_task.py::test_what_is_compared"),
    ("a wider window is narrower", "task.py", "and easiest > settings.window > 0",
     "and easiest > 1",
     "gate/test_task.py::test_first_stage_of_two_thoughts"),
    ("things are passed on the wrong way", "lab/tasks.py", "has = has[-1:] + has[:-1]",
     "has = has[1:] + has[:1]", "lab/test_tasks.py::test_more_stories_of_swaps"),
    ("new orders are not read", "data.py", "0 if self.all or stage < 2", "0 if stage < 2",
     "test_3_data.py::test_what_is_not_read_yet"),
    ("wrong bytes are learned", "reader.py", '(encoding)("strict")', '(encoding)("replace")',
     "gate/test_files.py::test_what_is_no_text"),
    ("half a cache is taken", "reader.py",
     'if 2 * n != size - length or sha.hexdigest() != about["sha256"]', "if False",
     "gate/test_files.py::test_a_spoilt_cache_is_made_again"),
    ("a trained checkpoint without its log is written over", "run.py",
     'return read_weights(file)["progress"]["step"] == 0', "return True",
     f"{END}::test_a_trained_checkpoint_is_set_aside"),
    ("a link becomes a file", "command.py", "target = Path(os.path.realpath(path))",
     "target = Path(path)", f"{END}::test_links_are_written_through"),
    ("a text that changed is not noticed", "run.py",
     'changed = run.saved_data not in ("", run.source.digest)', "changed = False",
     f"{END}::test_changed_data_are_noticed"),
    ("a full disk ends a run through its terminal", "command.py",
     "sys.stdout.goes_on = goes_on", "sys.stdout.goes_on = False",
     f"{END}::test_closed_or_full"),
    ("a log with NaN", "command.py", "isinstance(x, float) and not math.isfinite(x)", "False",
     f"{END}::test_json_is_json"),
]


def plant(folder: Path, file: str, old: str, new: str) -> None:
    """Raises SystemExit where there is not exactly one place for the mistake."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if text.count(old) != 1:
        sys.exit(f"mutate.py: {old!r} occurs {text.count(old)} times in {file}, not once: mend the "
                 "list")
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")


def caught_by(copy: Path, tests: str) -> str | None:
    """The first test that fails; None: all pass. Raises SystemExit where pytest itself fails."""
    names = [f"tests/{name}" for name in tests.split()]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names],
        cwd=copy, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    failed = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (0, 1) or (done.returncode == 1 and not failed):
        sys.exit(f"mutate.py: pytest itself failed:\n{done.stdout}{done.stderr}")
    return failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else None


def main() -> None:
    if importlib.util.find_spec("transformers") is None:
        sys.exit("mutate.py: first pip install -r tests/requirements.txt, else some tests are "
                 "skipped and catch nothing")
    chosen = [MUTANTS[int(i) - 1] for i in sys.argv[1:]] or MUTANTS
    survived, no = [], (".git", "__pycache__", "out*", "cache", "figures", "runs")
    with tempfile.TemporaryDirectory() as temp:
        copy = Path(temp) / "nanothink"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*no))
        for _, file, old, new, _ in MUTANTS:  # all of the list is checked before the first test
            plant(copy, file, old, new)
            shutil.copy(ROOT / file, copy / file)
        for what, file, old, new, tests in tqdm(chosen):
            plant(copy, file, old, new)
            t0 = time.time()
            by = caught_by(copy, tests)
            shutil.copy(ROOT / file, copy / file)
            survived += [] if by else [what]
            tqdm.write(f"{'caught  ' if by else 'SURVIVED'} {time.time() - t0:4.0f} s  {what}: "
                       + (by or f"{file} passes {tests}"))
    print(f"{len(chosen) - len(survived)} of {len(chosen)} caught")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
