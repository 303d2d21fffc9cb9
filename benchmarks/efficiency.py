"""The cost of one model for all modalities, and quality by the number of steps.

    python benchmarks/efficiency.py checkpoints/orchard --data data/orchard/val.parquet \
        --judge benchmarks/judges/orchard --out docs/results/orchard-efficiency.json \
        --plot docs/orchard_efficiency.png

One pass of the network for all modalities is timed against a pass of the same network for photos alone, and
against a pass of each of the models for one task that it replaces, in pairs, in turn.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

