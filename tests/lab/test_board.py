"""tests/board.py: are moves counted as they should, and is a read-out told what it should be?

Left out on purpose: what trained thoughts say, which is a result.
"""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from conftest import run
from data import END_OF_TEXT
from run import open_run

chess = pytest.importorskip("chess")
import board  # noqa: E402
from board import P, S, Played  # noqa: E402

SMALL = ("--approach stream --model bytes:1x8 --prompt_tokens 8 --new_tokens 40 --window 5 "
         "--steps 1 --prompts 4 --lr 1e-3").split()
THINK = "--think forced --think_after word --budget 20".split()


def games(count: int) -> list[str]:
    """Legal ones of 16 moves, at random."""
    rng, out = np.random.default_rng(0), []
    for _ in range(count):
        position, moves = chess.Board(), []
        while len(moves) < 16 and (legal := [*position.legal_moves]):
            moves.append(position.san(legal[rng.integers(len(legal))]))
            position.push_san(moves[-1])
        out.append(" ".join(moves))
    return out


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("games") / "chess.jsonl"
    path.write_text("".join(json.dumps({"text": f"{game}\n"}) + "\n" for game in games(400)))
    return path


@pytest.mark.parametrize("text, moves", [
    ("e4 e5 Nf3\n<|endoftext|>d4 d5", ["e4", "e5", "Nf3"]), ("e4 e5 Nf", ["e4", "e5"]),
    ("e4 e5\n<|endoft", ["e4"]), ("\n<|endoftext|>", []), ("e4", [])], ids=repr)
def test_moves_of_a_text(text, moves):
    """Of the first game alone, and none that is cut off."""
    assert board.moves_in(text) == moves


def test_up_to_the_first_illegal_move():
    """Then what follows does not count, though it may be legal."""
    assert [len(board.boards(x.split())) for x in (
        "e4 e5 Ke2 Ke7", "e4 e5 Ke3 d5", "e5", "e4 e5 xx", "Nf3 Nf6 " * 20, "Nf3+ d5", "e4 --",
        "e2e4", "Nf3 Nf6 Ng1 Ng8 " * 5)] == [4, 2, 0, 2, 2, 0, 1, 0, 16]
    assert [board.counts(x.split()) for x in ("", "e4 e5", "e4 e5 Ke3 d5", "Nf3 Nf6 Ng1 Ng8 " * 5)
            ] == [(0, 0), (2, 2), (2, 3), (16, 16)]
    start = board.pieces(chess.Board())
    assert start[0] == start[7] == 4 and start[63] == 10 and start.count(0) == 32
    assert start[8:16] == [1] * 8 and start[48:56] == [7] * 8  # pawns, a2 to h2 and a7 to h7


@pytest.mark.parametrize("thoughts", [["--think_vocab", "6", *THINK], [*THINK, "--thoughts",
                                      "continuous"], ["--thoughts", "none"]],
                         ids=["ids", "vectors", "none"])
def test_a_run(thoughts, file, monkeypatch, capsys, tmp_path):
    """Each move has the thought behind it: by hand, from the text as it is read. Then all that is
    asked is there."""
    argv = [*SMALL, *thoughts, "--data", file, "--out", tmp_path / "r"]
    assert run(train.main, argv, monkeypatch, capsys)[0] == 0
    it = open_run(tmp_path / "r" / "ckpt.pt")
    rows = board.windows(it.source.eval, it.model.text_ids.index(END_OF_TEXT), 9)
    assert rows.shape == (9, P + S) and (rows[:, P - 1] == it.model.text_ids.index(
        END_OF_TEXT)).all()
    moves, numbers = board.played(rows, it.tokenizer)
    assert len({*numbers.values()}) == len(numbers) > 50 and moves.move.min() > 0
    assert {side for side, _ in numbers} == {0, 1}
    unknown, _ = board.played(rows, it.tokenizer, {(0, "e4"): 1})
    assert {*unknown.move.tolist()} <= {0, 1} and (unknown.board == moves.board).all()
    text = [it.tokenizer.decode(ids[P:at + 1]) for ids, at in zip(rows[moves.row].tolist(),
                                                                  moves.at.tolist())]
    assert all(x.count(" ") + x.count("\n") == ply + 1 and x[-1].isspace()
               for x, ply in zip(text, moves.ply.tolist()))
    assert board.boards(text[-1].split())[-1].board_fen() == fen_of(moves.board[-1].tolist())
    found = board.look(it, moves, moves)
    assert 0 <= found["until"] <= 16 and 0 <= found["legal"] <= 1
    fresh = board.nats_of_squares(board.ReadOut(999, 0), moves, None)
    assert sum(found["squares"]["thought"]) < 0.5 * sum(fresh)  # it was fitted
    z = board.thoughts(it, moves)
    own = board.Case(it.model, it.rules, board.plain(rows, P, S),
                     board.Luck(0, 0, "eval_rollout")).own
    if thoughts[0] != "--think_vocab":  # the state in the place of the white space
        at = [own.place[r, at] for r, at in zip(moves.row, moves.at)]
        assert torch.equal(z, torch.stack([own.h[r, t] for r, t in zip(moves.row, at)]))
    else:
        V = it.model.config.vocab_size
        for r, kept in enumerate(own.kept()):
            ids = [i - V for i in kept if i >= V]
            mine = z[moves.row == r].argmax(1).tolist()
            assert mine == ids[:len(mine)], "prompts have no slot, new text has one for each move"


def fen_of(squares: list[int]) -> str:
    """What a chess program would say of these pieces."""
    position = chess.Board(None)
    for i, x in enumerate(squares):
        if x:
            position.set_piece_at(i, chess.Piece((x - 1) % 6 + 1, x <= 6))
    return position.board_fen()


def test_a_read_out_by_hand(monkeypatch):
    """One square depends on the thought, one on the move, one on the number of the move. By the
    thought it is known; by another game's it is missed; without one it takes its entropy."""
    monkeypatch.setattr(board, "EPOCHS", 60)
    nats = board.nats_of_squares
    generator = torch.Generator().manual_seed(0)
    M = 4096
    z, ply, move = (torch.randint(n, (M,), generator=generator) for n in (2, 16, 3))
    squares = torch.zeros(M, 64, dtype=torch.long)
    squares[:, 5], squares[:, 6], squares[:, 7] = z, move, ply % 2
    played, told = Played(squares, z, z, ply, move, squares), F.one_hot(z).float()
    alone = nats(board.fitted(played, None), played, None)
    assert abs(alone[5] - np.log(2)) < 0.03 and max(alone[:5] + alone[6:]) < 0.03
    read_out = board.fitted(played, told)
    assert max(nats(read_out, played, told)) < 0.03
    others = board.another(played)
    assert (ply[others] == ply).all() and sorted(others.tolist()) == list(range(M))
    assert nats(read_out, played, told[others])[5] > 1


def test_the_table(tmp_path):
    """And the picture of what ids take off."""
    squares = {"thought": [0.25] * 64, "another": [0.5] * 64}
    seeds = [{"legal": 0.5, "until": 3.0, "squares": squares}] * 2
    result = {"by_move": [0.375] * 64, "arms": {
        "none, 5": {"seeds": [{"legal": 0.25, "until": 1.0}] * 2}, "ids, 5": {"seeds": seeds}}}
    lines = board.table(result).splitlines()
    assert lines[2:4] == ["| none, 5 | 25 ± 0 | 1.0 ± 0.0 | - | - |",
                          "| ids, 5 | 50 ± 0 | 3.0 ± 0.0 | 16.0 ± 0.0 | 32.0 ± 0.0 |"]
    assert lines[-1].endswith("24.0 nats.")
    board.draw(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 9999
