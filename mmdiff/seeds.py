"""Seeds of 64 bits for generators that look at 32 of them."""

import numpy as np

LOW = 2**32


def folded(seed: int) -> int:
    """Itself if below 2**32, else a hash that is: torch's generator on the CPU drops what is above.

    numpy's `SeedSequence` is the hash: seeds that differ in any bit give unrelated numbers.
    """
    return seed if seed < LOW else int(np.random.SeedSequence(seed).generate_state(1)[0])
