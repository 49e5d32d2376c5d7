"""Limits on what is read: far above any need, low enough that a mistake or an attack ends in an error message."""

MOST_CONFIGURATION_BYTES = 200_000
"""Bytes of a configuration file or of one `--set` value; the longest handwritten ones have a tenth of this."""

MOST_CONFIGURATION_VALUES = 20_000
"""Values in a configuration, counting each repetition by an alias: a few lines of aliases can expand to billions."""

MOST_NESTING = 50
"""Nesting depth of lists and mappings, in configurations and table cells; a run's configuration needs 8."""

MOST_DIGITS = 40
"""Digits of an integer in a configuration; every field takes fewer, and Python refuses to parse 4,301."""

MOST_SETTING = 100_000
"""Characters of one text in a configuration, including templates."""

MOST_NAME = 100
"""Characters of a teacher's or context's name: names label every chart and table."""

MOST_ERRORS = 20
"""Most wrong fields reported in one error."""

MOST_FIELDS = 100
"""Fields of one template; together with `MOST_CELL` it bounds the length of a filled template."""

MOST_PROMPT = 4_000_000
"""Characters of a prompt before tokenization, above the longest context windows."""

MOST_TABLE_BYTES = 4 * 2**30
"""Bytes of a table file: questions or recorded outcomes."""

MOST_ROWS = 20_000_000
"""Rows of a table; all are kept in memory."""

MOST_CELL = 1_000_000
"""Characters of one cell of a table."""

MOST_ID = 500
"""Characters of a question's id, which every table row and many messages contain."""

MOST_POSITIONS = 100_000_000
"""Positions over all rollouts of a recorded table, from 0 to the last recorded position of each: their arrays take
28 bytes per position."""

LEAST_INCLUSION = 1e-9
"""Inclusion probability of a recorded node: below it, the node's weight dominates every other node of any run."""

MOST_TOKENS = 10_000_000
"""Tokens of a completion, and the last position of a recorded rollout."""

MOST_ROLLOUTS = 100_000
"""Rollouts of a question."""

MOST_DRAWS = 100_000_000
"""Draws of a question over all its nodes."""

MOST_NODE_DRAWS = 1_000_000
"""Draws of one node or one round, and nodes of a question."""

MOST_POSTERIOR = 20_000
"""Posterior simulations per node: ten times as many would not change a second digit."""

MOST_BOOTSTRAP = 100_000
"""Bootstrap replicates: far fewer already give the ends of a 95 % interval to 1 % of its width."""

MOST_SIGNALS = 1_000
"""Teachers, contexts of one teacher, losses, or runs of a suite."""

MOST_AT_ONCE = 1_000_000
"""Rows, requests, questions or threads processed concurrently."""

MOST_SECONDS = 10_000_000
"""Seconds of a time limit or pause: 116 days."""

INT32 = 2**31 - 1
"""The largest integer in a column of recorded outcomes."""
