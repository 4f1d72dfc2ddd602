"""AN4 with HAT (arXiv 2003.07705): quickstart.py with another objective.

    asr-jax train configs/an4_hat.py

One core of a shared AMD EPYC with other work on it, Python 3.12, JAX 0.12.0, seed 0, in 10 minutes:
WER 17.6 % on dev, 9.0 % on test. Batches had the stated buckets of docs/benchmarks.md.

All other values are as in quickstart.py.
"""

import runpy
from dataclasses import replace
from pathlib import Path

base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]
config = replace(base, objective=replace(base.objective, kind="hat"))
