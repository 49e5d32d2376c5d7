"""What trainers get of a run: weights of its tokens, rules for fresh ones, and the code that applies them."""
