"""The parts of `python -m mmdiff.evaluate`."""
