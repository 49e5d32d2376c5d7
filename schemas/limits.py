"""Limits on what is read: far above what anybody needs, low enough that a mistake or an attack ends in a message."""

MOST_CONFIGURATION_BYTES = 200_000
"""Of a configuration file or one `--set` value; the longest that people write are a tenth of it."""

MOST_CONFIGURATION_VALUES = 20_000
"""Values in a configuration, what aliases repeat counted each time: a few lines of aliases can stand for billions."""

MOST_NESTING = 50
"""Levels of lists and mappings within each other, in configurations and in cells of tables; a run's own are 8."""

MOST_DIGITS = 40
"""Of a whole number in a configuration; every field takes less, and Python refuses to read 4,301."""

MOST_SETTING = 100_000
"""Characters of one text in a configuration, templates among them."""

MOST_NAME = 100
"""Characters of a name of a teacher or context: names are the labels of every chart and table."""

MOST_ERRORS = 20
"""Wrong fields that are told of at once."""

MOST_FIELDS = 100
"""Fields of one template; with `MOST_CELL` it bounds what a template can grow to."""

MOST_PROMPT = 4_000_000
"""Characters of a prompt before it is turned to tokens, above the longest context windows."""

MOST_TABLE_BYTES = 4 * 2**30
"""Of a table as it is read: questions or recorded outcomes."""

MOST_ROWS = 20_000_000
"""Rows of a table; they are held in memory."""

MOST_CELL = 1_000_000
"""Characters of one cell of a table."""

MOST_ID = 500
"""Characters of a question's id, which stands in every row of the tables and in messages."""

MOST_POSITIONS = 100_000_000
"""Positions of all rollouts of a recorded table together, from 0 to the last that is recorded of each: they are
laid out as arrays, 28 bytes a position."""

LEAST_INCLUSION = 1e-9
"""Probability that a recorded node was chosen: below, its weight outweighs every other node of any run."""

MOST_TOKENS = 10_000_000
"""Of a completion, and the last position of a recorded rollout."""

MOST_ROLLOUTS = 100_000
"""Rollouts of a question."""

MOST_DRAWS = 100_000_000
"""Draws of a question over all its nodes."""

MOST_NODE_DRAWS = 1_000_000
"""Draws of one node or one round, and nodes of a question."""

MOST_POSTERIOR = 20_000
"""Posterior simulations of a node: ten times more would change no second digit."""

MOST_BOOTSTRAP = 100_000
"""Bootstrap replicates: the ends of a 95 % interval are known to 1 % of its width from far fewer."""

MOST_SIGNALS = 1_000
"""Teachers, contexts of one teacher, losses, or runs of a suite."""

MOST_AT_ONCE = 1_000_000
"""Rows, requests, questions or threads that are worked on beside each other."""

MOST_SECONDS = 10_000_000
"""Of a time limit or pause: 116 days."""

INT32 = 2**31 - 1
"""The largest whole number that a column of recorded outcomes holds."""
