"""What nothing in the core imports: experiments, probes, benchmarks, pictures.

Run from the root: python -m lab.probe.
"""
import sys

import command

if sys.argv[:1] == ["-m"]:  # one of its commands is about to be loaded
    command.begin()
