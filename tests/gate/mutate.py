"""Do the tests test anything? Plants one mistake at a time in a copy of the repository, and expects its tests to fail.

    python tests/gate/mutate.py            # all of them: 5 to 30 seconds each
    python tests/gate/mutate.py 3 7        # the third and the seventh

It needs all of tests/requirements.txt: where transformers is missing, the tests against it are skipped and catch nothing.

A mistake is one exact string that becomes another. Where that string doesn't occur exactly once any more, this ends with an
error: the list has to follow the code. Left out on purpose: mistakes made by a machine, most of which change nothing.
The other half of the question, which lines are never run: pip install coverage, then
    coverage run --source . -m pytest -q tests && coverage report
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
MUTANTS = [  # what is wrong, file, string, what it becomes, tests that must notice
    ("a return with the wrong sign", "reward.py", "running = r[:, i] + gamma * running", "running = r[:, i] - gamma * running",
     "test_reward.py"),
    ("the mean over contexts, not over siblings", "reward.py", "grouped - grouped.mean(1, keepdim=True)",
     "grouped - grouped.mean(0, keepdim=True)", "test_reward.py"),
    ("oneself in one's own baseline", "reward.py", " * (G / (G - 1))", "", "test_reward.py"),
    ("the price of entropy is not detached", "reward.py", 'entropy_price(H.detach(), scale["target"])',
     'entropy_price(H, scale["target"])', "test_reward.py"),
    ("the teacher sees the thoughts", "reward.py", "teacher(ro.text[::siblings, :-1])",
     "teacher(ro.ids[::siblings, :ro.text.shape[1] - 1] % teacher.config.vocab_size)", "test_reward.py"),
    ("a token is scored from its own state", "reward.py", "states_at(h, ro.left.gather(1, ro.place[:, ro.P:]))",
     "states_at(h, ro.place[:, ro.P:])", "test_reward.py"),
    ("the policy is pushed the wrong way", "reward.py", '-scale["policy"] * (a *', 'scale["policy"] * (a *', "test_reward.py"),
    ("the window is one token too wide", "rollout.py", "(back >= 0) & (back < window)",
     "(back >= 0) & (back <= window)", "test_rollout.py"),
    ("no mask in the gradient pass", "rollout.py", "return model(ro.ids, positions, mask, fed=told)", "return model(ro.ids, positions, fed=told)",
     "test_train.py"),
    ("one thought over the budget", "rollout.py", "(k < rules.max_thoughts) & (used < M)",
     "(k < rules.max_thoughts) & (used <= M)", "test_rollout.py"),
    ("the gate's log-prob is that of the other choice", "rollout.py", "torch.where(is_think, gap, -gap)",
     "torch.where(is_think, -gap, gap)", "test_rollout.py"),
    ("rounding may draw what has weight 0", "rollout.py", "(ends.gather(1, b) - sums.gather(1, b))).clamp(min=0)",
     "(ends.gather(1, b) - sums.gather(1, b)))", "test_rollout.py"),
    ("branches see each other", "rollout.py", "(branch[:, None] == branch) & (step[:, None] >= step)",
     "(step[:, None] >= step)", "test_branches.py"),
    ("the exact GELU", "model.py", 'approximate="tanh"', 'approximate="none"', "test_model.py"),
    ("thinking rows without mean(wte)", "model.py", "nn.Parameter((mean + noise)", "nn.Parameter((noise)", "test_model.py"),
    ("a pickle may run code", "model.py", "weights_only=True)", "weights_only=False)",
     "test_model.py gate/test_nothing_lost.py"),
    ("the checksum is not compared", "model.py", "digest(f, size) != end", "digest(f, size) == b\"\"",
     "gate/test_nothing_lost.py"),
    ("a new run leaves the old one's checkpoint beside its own log", "train.py", "    if saved is None and chief:  # before the log",
     "    if False:  # before the log", "gate/test_nothing_lost.py"),
    ("training sees the held-out text", "data.py", "self.train, self.eval = self.train[:cut],",
     "self.train, self.eval = self.train,", "test_data.py"),
    ("luck that forgets its purpose", "data.py", "[seed, step, PURPOSES.index(purpose)]", "[seed, step]", "test_data.py"),
    ("markup in a sample is not escaped", "tokenizer.py", "{html.escape(s)}", "{s}", "test_tokenizer.py"),
    ("siblings do not stand side by side", "train.py", 'repeat_interleave(a["samples"], 0)',
     'repeat(a["samples"], 1)', "test_train.py"),
    ("a thought is paid for its cost", "train.py", "returns_to_go(r - cost,", "returns_to_go(r + cost,", "test_train.py"),
    ("gradients of earlier steps are kept", "train.py", "        optimizer.zero_grad(set_to_none=True)\n", "", "test_train.py"),
    ("the frontier trains the reader", "train.py", "weight.masked_fill(frontier, 0)", "weight", "test_train.py"),
    ("a step with a NaN is taken", "train.py", "if math.isfinite(loss) and math.isfinite(norm):", "if True:",
     "gate/test_nothing_lost.py"),
    ("an evaluation is lost on resume", "journal.py", '"eval": step + 1}', '"eval": step}', "gate/test_nothing_lost.py"),
    ("the curriculum starts anew on resume", "train.py", 'first_state(a) | (saved["state"] if saved is not None else {})',
     'first_state(a) | ({"step": saved["state"]["step"]} if saved is not None else {})', "gate/test_nothing_lost.py"),
]


def plant(folder: Path, file: str, old: str, new: str) -> None:
    """Raises SystemExit where there is not exactly one place for the mistake."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if text.count(old) != 1:
        sys.exit(f"mutate.py: {old!r} occurs {text.count(old)} times in {file}, not once: mend the list")
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")


def main() -> None:
    if importlib.util.find_spec("transformers") is None:
        sys.exit("mutate.py: first pip install -r tests/requirements.txt, else some tests are skipped and catch nothing")
    chosen = [MUTANTS[int(i) - 1] for i in sys.argv[1:]] or MUTANTS
    survived = []
    with tempfile.TemporaryDirectory() as temp:
        copy = Path(temp) / "nanothink"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "out*", "cache", "figures", "runs"))
        for _, file, old, new, _ in MUTANTS:  # all of the list is checked before the first test runs
            plant(copy, file, old, new)
            shutil.copy(ROOT / file, copy / file)
        for what, file, old, new, tests in tqdm(chosen):
            plant(copy, file, old, new)
            t0 = time.time()
            done = subprocess.run([sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
                                   *(f"tests/{name}" for name in tests.split())], cwd=copy, capture_output=True, text=True,
                                  env=os.environ | {"OMP_NUM_THREADS": "1"})
            shutil.copy(ROOT / file, copy / file)
            caught = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            if done.returncode not in (0, 1) or (done.returncode == 1 and not caught):
                sys.exit(f"mutate.py: pytest itself failed:\n{done.stdout}{done.stderr}")
            survived += [] if caught else [what]
            tqdm.write(f"{'caught  ' if caught else 'SURVIVED'} {time.time() - t0:4.0f} s  {what}: "
                       + (caught[0].split(" - ")[0].removeprefix("FAILED ") if caught else f"{file} passes {tests}"))
    print(f"{len(chosen) - len(survived)} of {len(chosen)} caught")
    sys.exit(bool(survived))


if __name__ == "__main__":
    main()
