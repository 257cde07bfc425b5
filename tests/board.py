"""What do thoughts say of the board, and are a model's own moves legal? For runs of `chess`.

    python -m lab.experiments chess     # makes the runs
    python tests/board.py               # figures/board.json, board.png and a table

The rules are python-chess's, so this stands among the tests. A read-out guesses what stands on each
square, by a weight for each thing that it is told. It is fitted on games of training and asked on
held-out ones. It is told the last move, whose it was, and how many came before. Then also the
thought after that move, or the one that another game has there. Of a model without thoughts it is
told the state at that place, which shows what five characters in sight tell.

Left out on purpose: read-outs of more than one layer, which may work out what no thought says.

Letters: R rows, P prompt tokens, S new ones, M moves of all games, D numbers of a thought.
"""
import argparse
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import chess  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

import command  # noqa: E402
from data import END_OF_TEXT, plain  # noqa: E402
from evaluate import free_text  # noqa: E402
from lab.experiments import EXPERIMENTS, folder, last_line  # noqa: E402
from lab.probe import Case  # noqa: E402
from lab.report import cell, head, row  # noqa: E402
from rollout import Luck  # noqa: E402
from run import Run, open_run  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402

P, S = 8, 88  # the end of another game, and a whole one of 16 moves
PLIES, PIECES = 16, 13  # moves of a game; what may stand on a square
GAMES, ASKED = 3000, 1600  # that a read-out is fitted to, and asked
WRITTEN, PART = 512, 400  # own games; rows that are read at once
EPOCHS, BATCH, RATE = 12, 1024, 0.05  # of a fit


class Played(NamedTuple):
    """M moves of many games. rows [R, P + S]: their text. row [M], at [M]: which one, and the place
    in it after which a thought stands. ply [M], from 0. move [M]: the number of a side and its
    move, 0 for one that was not fitted. board [M, 64]: what then stands on each square."""
    rows: Tensor
    row: Tensor
    at: Tensor
    ply: Tensor
    move: Tensor
    board: Tensor


def windows(ids: np.ndarray, end: int, count: int) -> Tensor:  # -> [count, P + S]
    """The last games of a text, each from place P of its row on. Fewer where there are fewer."""
    starts = np.flatnonzero(ids == end) + 1
    starts = starts[(starts >= P) & (starts + S <= len(ids))][-count:]
    return torch.from_numpy(np.stack([ids[s - P:s + S] for s in starts]).astype(np.int64))


def moves_in(text: str) -> list[str]:
    """Of the game at a text's beginning; a move that is cut off does not count."""
    game, ended, _ = text.partition("<|endoftext|>")
    words = game.split(" ")
    whole = [x.strip() for x in (words if ended else words[:-1])]
    return whole[:-1] if whole and not whole[-1] else whole


def boards(moves: list[str]) -> list[chess.Board]:
    """After each move, up to the first that is not legal, or not written as it should be."""
    board, out = chess.Board(), []
    for move in moves[:PLIES]:
        try:
            found = board.parse_san(move)
        except ValueError:
            break
        if not found or board.san(found) != move:  # a null move; a check that is none
            break
        board.push(found)
        out.append(board.copy(stack=False))
    return out


def pieces(board: chess.Board) -> list[int]:  # -> 64 of 0 to 12
    """0: nothing. a1, b1, ... h8."""
    there = board.piece_map()
    return [there[i].piece_type + 6 * (not there[i].color) if i in there else 0 for i in range(64)]


def played(rows: Tensor, tokenizer: Tokenizer, known: dict | None = None) -> tuple[Played, dict]:
    # [R, P + S]
    """The moves of these rows' games, and the numbers of moves. known: numbers of moves that were
    fitted; None: each new one gets the next."""
    found, numbers = [], {} if known is None else known
    for r, ids in enumerate(rows.tolist()):
        moves, at = moves_in(tokenizer.decode(ids[P:])), P - 1
        for ply, (move, board) in enumerate(zip(moves, boards(moves))):
            at += len(move) + 1  # and the white space behind it
            key = ply % 2, move
            if known is None:
                numbers.setdefault(key, len(numbers) + 1)
            found.append((r, at, ply, numbers.get(key, 0), pieces(board)))
    return Played(rows, *map(torch.tensor, zip(*found))), numbers


def thoughts(run: Run, games: Played) -> Tensor:  # -> [M, D]
    """After each move: a one among N zeros, or the vector. Without thoughts: the state there."""
    out, V = [], run.model.config.vocab_size
    for first in range(0, len(games.rows), PART):
        text = plain(games.rows[first:first + PART], P, S)
        own = Case(run.model, run.rules, text, Luck(0, first, "eval_rollout")).own
        here = (games.row >= first) & (games.row < first + PART)
        r, at = games.row[here] - first, games.at[here]
        if run.rules.think == "never":
            out.append(own.h[r, own.place[r, at]])
            continue
        t = ((own.after[r] == at[:, None]) & own.is_think[r]).int().argmax(1)
        assert own.is_think[r, t].all(), "a thought after each move"
        out.append(own.h[r, own.chosen_at[r, t]] if run.rules.continuous else
                   F.one_hot(own.ids[r, t] - V, len(run.model.think)).float())
    return torch.cat(out)


class ReadOut(nn.Module):
    """Logits of what stands on each square: a sum of what each thing that it is told says."""

    def __init__(self, moves: int, D: int):
        super().__init__()
        self.ply, self.move = (nn.Embedding(n, 64 * PIECES) for n in (PLIES, moves + 1))
        self.thought = nn.Linear(D, 64 * PIECES, bias=False) if D else None
        for part in self.parameters():
            nn.init.zeros_(part)

    def forward(self, ply: Tensor, move: Tensor, z: Tensor | None) -> Tensor:
        # [n], [n], [n, D] -> [n, 64, PIECES]
        logits = self.ply(ply) + self.move(move)
        if self.thought is not None:
            logits = logits + self.thought(z)
        return logits.view(-1, 64, PIECES)


def fitted(games: Played, z: Tensor | None) -> ReadOut:  # [M, D]
    """To these games. z: thoughts that it is told."""
    torch.manual_seed(0)
    model = ReadOut(int(games.move.max()), z.shape[1] if z is not None else 0)
    size = min(BATCH, len(games.ply))
    steps = EPOCHS * (len(games.ply) // size)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    down = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, steps)
    for _ in range(EPOCHS):
        for i in torch.randperm(len(games.ply))[:len(games.ply) // size * size].view(-1, size):
            logits = model(games.ply[i], games.move[i], None if z is None else z[i])
            loss = F.cross_entropy(logits.flatten(0, 1), games.board[i].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            down.step()
    return model


@torch.no_grad()
def nats_of_squares(model: ReadOut, games: Played, z: Tensor | None) -> list[float]:  # [M, D] -> 64
    """Of each square of these games: a mean over their moves."""
    logits = model(games.ply, games.move, z).flatten(0, 1)
    loss = F.cross_entropy(logits, games.board.flatten(), reduction="none")
    return loss.view(-1, 64).mean(0).tolist()


def another(games: Played) -> Tensor:  # -> [M]
    """For each move that of another game, after as many moves."""
    out = torch.zeros_like(games.ply)
    for ply in games.ply.unique():
        at = (games.ply == ply).nonzero().squeeze(1)
        out[at] = at.roll(-1)
    return out


def own_games(run: Run, prompts: Tensor) -> np.ndarray:  # [R, P] -> [R, 2]
    """Of each game that it writes: how many moves are legal up to the first that is not, and how
    many were written up to there. Text at temperature 1, greedy thoughts."""
    ro = free_text(run.model, run.source, run.rules, plain(prompts, P, S), None)[1]
    return np.array([counts(moves_in(run.tokenizer.decode(ids[P:]))) for ids in ro.text.tolist()])


def counts(moves: list[str]) -> tuple[int, int]:
    """Legal ones before the first that is not, and with that one; of the first 16."""
    legal = len(boards(moves))
    return legal, min(len(moves), legal + 1, PLIES)


def look(run: Run, fit: Played, asked: Played) -> dict:
    """All that is asked of a run. until: legal moves before the first that is not, a mean over own
    games. legal: their share of all moves that were written up to there. squares: nats of each
    square, by a read-out that is told the thought, and by the same one with another's."""
    own = own_games(run, asked.rows[:WRITTEN, :P])
    legal, written = own.sum(0)
    out = {"legal": float(legal / max(written, 1)), "until": float(legal / len(own))}
    if run.rules.think == "never" or run.rules.continuous or len(run.model.think) > 1:
        read_out, z = fitted(fit, thoughts(run, fit)), thoughts(run, asked)
        out["squares"] = {"thought": nats_of_squares(read_out, asked, z),
                          "another": nats_of_squares(read_out, asked, z[another(asked)])}
    return out


def table(result: dict) -> str:
    """Nats are for a whole board: the sum of its squares, as if they did not hang together."""
    lines = head("arm", "legal moves, %", "of 16, before an illegal one",
                 "nats for a board, by its thought or state", "by another's")
    for arm, found in result["arms"].items():
        seeds = found["seeds"]
        cells = [cell([np.sum(s["squares"][told]) for s in seeds], 1)
                 if "squares" in seeds[0] else "-" for told in ("thought", "another")]
        lines.append(row(arm, cell([100 * s["legal"] for s in seeds]),
                         cell([s["until"] for s in seeds], 1), *cells))
    alone = sum(result["by_move"])
    return "\n".join([*lines, "", f"By the last move alone a board takes {alone:.1f} nats."])


def draw(result: dict, path: Path) -> None:
    """A board: on each square, the nats that thoughts in ids take off."""
    plt = command.pyplot()
    seeds = result["arms"]["ids, 5"]["seeds"]
    less = np.mean([np.subtract(result["by_move"], s["squares"]["thought"]) for s in seeds], 0)
    figure, axis = plt.subplots(figsize=(5, 4.4), layout="constrained")
    shown = axis.imshow(less.reshape(8, 8), origin="lower", cmap="Purples")
    axis.set_xticks(range(8), "abcdefgh")
    axis.set_yticks(range(8), range(1, 9))
    figure.colorbar(shown, label="nats that a thought takes off")
    figure.suptitle("What a thought says of the board, beyond the last move", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, default=5)
    seeds, experiment = p.parse_args().seeds, EXPERIMENTS["chess"]
    if seeds < 1:
        p.error("--seeds must be at least 1")
    there = {arm: [folder(experiment, arm, s) for s in range(seeds)] for arm in experiment.arms}
    if missing := [x for outs in there.values() for x in outs if not last_line(x)]:
        p.error(f"there is no run in {missing[0]}: python -m lab.experiments chess makes it")
    run = open_run(there["ids, 5"][0] / "ckpt.pt")
    end = run.model.text_ids.index(END_OF_TEXT)
    fit, numbers = played(windows(run.source.train, end, GAMES), run.tokenizer)
    asked, _ = played(windows(run.source.eval, end, ASKED), run.tokenizer, numbers)
    bar = tqdm(total=seeds * len(there), unit="run")
    result = {"command": f"python tests/board.py --seeds {seeds}",
              "by_move": nats_of_squares(fitted(fit, None), asked, None), "arms": {}}
    for arm, outs in there.items():
        found = result["arms"][arm] = {"seeds": []}
        for out in outs:
            found["seeds"].append(look(open_run(out / "ckpt.pt"), fit, asked))
            bar.update()
    bar.close()
    path = ROOT / "figures" / "board.json"
    command.write_whole(path, command.as_json(result, indent=1).encode())
    draw(result, path.with_suffix(".png"))
    print(table(result))


if __name__ == "__main__":
    command.run(main)
