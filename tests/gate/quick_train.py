"""train.py with evaluations that ask nothing, for tests that start real processes: a whole one
takes longer than their steps. Says how many threads of gloo are left at the end."""
import atexit
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import train  # noqa: E402
from run import Run  # noqa: E402


def measure(self: Run, whole: bool) -> None:
    self.log.write("eval", self.progress.step, {"nats_without_thoughts": 1.0})


def count_threads() -> None:
    """Those of gloo that are left, on Linux. One that still holds a tensor when Python ends aborts
    the process."""
    names = [x.read_text().strip() for x in Path("/proc/self/task").glob("*/comm")]
    # in one piece: two processes write here at once
    sys.stderr.write(f"left over: {sum('gloo' in x for x in names)}\n")


if __name__ == "__main__":
    Run.measure = measure
    atexit.register(count_threads)
    train.main()
