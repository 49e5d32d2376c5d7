"""How answers are checked."""
