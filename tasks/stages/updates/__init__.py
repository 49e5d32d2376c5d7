"""Update gain: what signals do to the student's parameters, crossed between questions."""
