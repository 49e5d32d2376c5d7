"""Stage 4: losses, and the gradients that they give."""
