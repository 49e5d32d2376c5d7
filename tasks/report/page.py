from collections.abc import Mapping
Failures = Mapping[str, str]
def render(*a): return "todo"
