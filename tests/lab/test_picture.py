"""lab/picture.py draws any run on cups of one ball, and says of another model that it can't."""
import json
from pathlib import Path

import pytest
from PIL import Image

import train
from lab import picture
from lab.figures import digest
from run import Run
from settings import resolve
from weights import save

FIGURES = Path(__file__).resolve().parent.parent.parent / "figures"


def new_run(folder: Path, **flags) -> Run:
    """A run as it is before its first step, with its checkpoint in the folder."""
    run = train.setup(resolve({"approach": "stream", "think_vocab": 4, "prompts": 2, **flags}))
    save(folder / "ckpt.pt", run.whole())
    return run


def test_picture(tmp_path):
    """Text and thoughts are those of one rollout, and the cup under a thought is the ball's."""
    run = new_run(tmp_path, model="pico")
    pieces = picture.story(tmp_path, 0)
    prompt = "".join(x.string for x in pieces if x.kind == "prompt")
    assert prompt == picture.PROMPT and any(x.kind == "text" for x in pieces)
    ids, cups = [], []
    for piece in pieces:
        if piece.kind == "think":
            where, _ = run.source.follow(ids)[-1]
            assert piece.cup == "ABC"[where[0]]
            cups.append(piece.cup)
        else:
            ids += run.tokenizer.encode(piece.string)
            assert piece.cup == ""
    assert cups  # an untrained student makes moves as well, and thinks after them
    channel = json.loads((FIGURES / "channel.json").read_text())
    with pytest.raises(ValueError, match="lab.probe"):
        picture.what_is_said(tmp_path)
    (tmp_path / "probe.json").touch()  # lab.probe has only begun
    with pytest.raises(ValueError, match="probe.json is not whole"):
        picture.what_is_said(tmp_path)
    said = {"dictionary": {"reading": "after", "columns": ["A AB", "B AB"],
                           "share_of_situation": {"7": [1, 0], "3": [0, 0.5]}}}
    (tmp_path / "probe.json").write_text(json.dumps(said))
    picture.draw(pieces, channel, picture.what_is_said(tmp_path), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_the_picture_is_of_its_json():
    """Guards README's picture: its controls are those of figures/channel.json."""
    drawn_from = Image.open(FIGURES / "first.png").text["Source"]
    assert drawn_from == digest(json.loads((FIGURES / "channel.json").read_text()))


@pytest.mark.parametrize("flags", [
    {"data": "cups balls=all"}, {"approach": "next_token"}], ids=lambda x: str(*x.values()))
def test_other_runs_are_refused(flags, tmp_path):
    new_run(tmp_path, **flags)
    with pytest.raises(ValueError, match="no run on cups of one ball"):
        picture.story(tmp_path, 0)
