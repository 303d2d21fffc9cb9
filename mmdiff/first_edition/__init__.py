"""The first edition of the model, with flags in place of levels: shipped checkpoints still run on it."""
