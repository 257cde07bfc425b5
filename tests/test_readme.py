"""The README is kept true: its commands have flags that exist, its tables are those of the committed json, its files are there."""
import argparse
import json
import re
import shlex
from pathlib import Path

import pytest

from experiments import EXPERIMENTS, table

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(p.name for p in ROOT.glob("*.py"))


def test_flags_exist():
    """Every flag that is written somewhere in the README belongs to one of the scripts, or to a tool of others."""
    others = {"--nproc_per_node", "--index-url"}
    known = {flag for s in SCRIPTS for flag in re.findall(r'add_argument\("(--[a-z_]+)"', (ROOT / s).read_text(encoding="utf-8"))}
    named = set(re.findall(r"--[a-z][a-z_-]*", TEXT)) - others
    assert len(named) > 20 and named <= known, sorted(named - known)


def test_train_commands_parse(monkeypatch):
    """Every `python train.py ...` of the README, whole, is accepted as it stands (upper case words are what a reader fills in)."""
    from settings import parse
    monkeypatch.setattr(argparse.ArgumentParser, "exit", lambda self, code=0, message="": pytest.fail(f"{line}: {message}"))
    lines = re.findall(r"python\s+train\.py([^`\n]*(?:\n[^`\n]+)?)`", TEXT) + re.findall(r"^.*python train\.py(.*)$", TEXT, re.M)
    checked = 0
    for line in lines:
        line = re.sub(r"\b(SEED|N)\b", "3", line.split("#")[0].split("`")[0].replace("...", ""))
        parse(shlex.split(line))
        checked += 1
    assert checked > 8


def test_every_file_is_named():
    """The table of files has every script, and no other one."""
    rows = re.findall(r"^\| `([a-z]+\.py)` \|", TEXT, re.M)
    assert sorted(rows) == SCRIPTS


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*.json")), ids=lambda p: p.stem)
def test_tables_are_those_of_the_json(path):
    """Each line that the experiment printed stands in the README, with its command; and its question is still the one asked."""
    result = json.loads(path.read_text())
    for line in table(result).splitlines():
        assert line in TEXT, line
    assert result["command"] in TEXT and (ROOT / "figures" / f"{path.stem}.png").exists()
    experiment = EXPERIMENTS[path.stem]
    assert (result["question"], result["prediction"]) == (experiment.question, experiment.prediction)
    assert [a["command"].split("train.py ")[1].split(" --thinker <")[0].split(" --model <")[0] for a in result["arms"].values()] == [
        arm.flags for arm in experiment.arms.values()]


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (ROOT / target).exists(), target
