"""What stands between a proposal and a cluster: one file per guard, `chain.py` runs them in order."""
