"""How answers are checked."""

VERIFIER_VERSIONS = {"exact": 2, "numeric": 2, "choice": 2, "math": 2}
"""Of each kind, raised whenever its code gives another verdict: rollouts' keys hold it."""
