"""Does the code still learn what it learned? The first 30 steps of 17 kinds of runs, to the digit.

    git worktree add ../before REVISION
    python tests/gate/replay.py ../before before.json     # runs them there (up to 10 minutes)
    python tests/gate/replay.py . after.json before.json  # here, and says where they differ

A change that is meant to leave the numbers alone has to pass this; one that is meant to change them
says so. Digits depend on the CPU, so both sides are run on one machine, one thread each. Not part
of pytest.
"""
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORDS = "zero one two three four five six seven eight nine ten".split()
SMALL = "--prompts 2 --prompt_tokens 8 --new_tokens 8"
STREAM = "train.py --approach stream"
# name: its command now, and with the flags of the first house, where those differ
KINDS = {
    "teacher": ["train.py --think_vocab 2048"],
    "sampled": ["train.py --reward sampled",
                "train.py --text_grad sampled --beta 0 --siblings free"],
    "stream": [STREAM],
    "continuous": [f"{STREAM} --thoughts continuous"],
    "filler": [f"{STREAM} --thoughts filler"],
    "none": [f"{STREAM} --thoughts none --window 0"],
    "next_token": ["train.py --approach next_token"],
    "next_token, free": ["train.py --approach next_token --think free --think_cost 0.02"],
    "free": [f"{STREAM} --think free --data cups_idle=0.4",
             f"{STREAM} --idle 0.4 --think free"],
    "balls": [f"{STREAM} --data cups_m=4_balls=all_swaps=6",
              f"{STREAM} --cups 4 --balls all --swaps 6"],
    "text": [f"{STREAM} --data TEXT --model scratch:1x16 {SMALL} --budget 8",
             f"{STREAM} --data TEXT --model scratch --layers 1 --width 16 {SMALL} --budget 8"],
    "text, next_token": [
        f"train.py --approach next_token --data TEXT --model scratch:1x16 {SMALL}",
        "train.py --approach next_token --data TEXT --model scratch --layers 1 --width 16 "
        + SMALL],
    "oracle": ["-m lab.distil --oracle", f"{STREAM} --thoughts oracle"],
    "alphabet, text": [
        "-m lab.alphabet --model pico --entropy 0.4 --alphabet text --pull 0.003",
        f"{STREAM} --model pico --entropy 0.4 --alphabet text --pull 0.003"],
    "alphabet, redrawn": ["-m lab.alphabet --model pico --entropy 0.4 --alphabet redrawn",
                          f"{STREAM} --model pico --entropy 0.4 --alphabet redrawn"]}
THEN = {  # these need a checkpoint of the former
    "thinker": ["-m lab.distil --thinker OUT/stream/ckpt.pt",
                f"{STREAM} --thinker OUT/stream/ckpt.pt"],
    "thinker, continuous": [
        "-m lab.distil --thoughts continuous --thinker OUT/continuous/ckpt.pt",
        f"{STREAM} --thoughts continuous --thinker OUT/continuous/ckpt.pt"]}


def run(repo: Path, out: Path, name: str, commands: list[str]) -> list[dict]:
    """One run, 30 steps -> its lines of metrics.jsonl."""
    old = not (repo / "run.py").exists()
    command = commands[-1 if old else 0].replace("TEXT", str(out / "numbers.txt"))
    argv = [a.replace("cups_", "cups ").replace("_balls", " balls").replace("_swaps", " swaps")
            if a.startswith("cups_") else a for a in command.replace("OUT", str(out)).split()]
    folder = out / name
    done = subprocess.run(
        [sys.executable, *argv, "--steps", "30", "--seed", "0", "--out", str(folder)], cwd=repo,
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    print(f"{name}: done", flush=True)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in x.items() if k != "seconds"} for x in lines]


def run_all(repo: Path) -> dict[str, list[dict]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "numbers.txt").write_text("".join(
            f"If we add {WORDS[i % 11]} and {WORDS[i * i // 7 % 11]}, we have "
            f"{i % 11 + i * i // 7 % 11}.\n" for i in range(3000)))
        found = {}
        for kinds in (KINDS, THEN):
            with ThreadPoolExecutor(2) as pool:
                jobs = {name: pool.submit(run, repo, out, name, commands)
                        for name, commands in kinds.items()}
                found |= {name: job.result() for name, job in jobs.items()}
    return found


def differences(before: list[dict], after: list[dict]) -> list[str]:
    """The columns that both have and that differ, each with its first line."""
    out = [] if len(before) == len(after) else [f"{len(before)} lines, now {len(after)}"]
    for i, (old, new) in enumerate(zip(before, after)):
        out += [f"line {i}: {k} {old[k]} -> {new[k]}" for k in old.keys() & new.keys()
                if old[k] != new[k]]
    return out


def main() -> None:
    repo, kept, *before = sys.argv[1:]
    found = run_all(Path(repo).resolve())
    Path(kept).write_text(json.dumps(found))
    worst = 0
    for name, old in json.loads(Path(before[0]).read_text()).items() if before else ():
        gone = sorted({k for x in old for k in x} - {k for x in found[name] for k in x})
        new = sorted({k for x in found[name] for k in x} - {k for x in old for k in x})
        wrong = differences(old, found[name])
        worst += bool(wrong)
        said = "equal" if not wrong else f"{len(wrong)} numbers differ, first {wrong[0]}"
        print(f"{name}: {len(old)} lines, {said}" + (f"; columns gone: {gone}" if gone else "")
              + (f"; new: {new}" if new else ""))
    sys.exit(bool(worst))


if __name__ == "__main__":
    main()
