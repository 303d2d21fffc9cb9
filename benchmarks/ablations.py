"""Compare design choices at equal cost, each alone against one baseline.

    python benchmarks/ablations.py --train data/orchard/train.parquet --val data/orchard/val.parquet \
        --out docs/results/ablations.json
    python benchmarks/ablations.py --study scenes --config configs/scenes-cpu.toml \
        --train data/scenes/train.parquet --val data/scenes/val.parquet --judge benchmarks/judges/scenes \
        --images 24000 --lr 1e-3 --seeds 1 --out docs/results/scenes-study.json

Small models are trained from scratch for the same number of steps, from the same seeds and on the same
batches, and measured on the same validation examples with the same noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

