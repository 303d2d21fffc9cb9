"""Seeds of 64 bits for generators that look at 32 of them."""

import numpy as np

LOW = 2**32


def folded(seed: int) -> int:
    """A seed below 2**32 as it is, a larger one hashed to such: torch's generator on the CPU drops what is above.

    numpy's `SeedSequence` is the hash, so that seeds that differ in any bit give unrelated numbers.
    """
    return seed if seed < LOW else int(np.random.SeedSequence(seed).generate_state(1)[0])
