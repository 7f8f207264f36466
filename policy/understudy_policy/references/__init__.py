"""References: the classical rules that stand beside the actor at every tick, exact and vectorised."""
