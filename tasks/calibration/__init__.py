"""The estimators judged against an exact oracle (statistics of section 8)."""
