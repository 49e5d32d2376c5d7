"""The statistics that stages share: estimators, the prior, sampling designs, random streams."""
