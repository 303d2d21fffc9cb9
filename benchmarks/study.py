"""A study: variants of one training run, each repeated with several seeds, kept in one JSON file.

`benchmarks/ablations.py` and `benchmarks/evidence.py` share it. Every finished run is stored immediately, so
that a study that was cut off continues when it is started again.
"""

from __future__ import annotations


