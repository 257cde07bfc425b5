"""What nothing in the core imports: experiments, probes, benchmarks, pictures.

Run from the root: python -m lab.probe.
"""
