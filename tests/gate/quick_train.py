"""train.py with evaluations that ask nothing, for tests that start real processes: a whole one
takes longer than their steps."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # noqa: E402
from run import Run  # noqa: E402


def measure(self: Run, whole: bool) -> None:
    self.log.write("eval", self.progress.step, {"nats_without_thoughts": 1.0})


if __name__ == "__main__":
    Run.measure = measure
    train.main()
