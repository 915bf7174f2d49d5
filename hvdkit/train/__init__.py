"""`python -m hvdkit.train`: the training loop and what a person sees of it."""
