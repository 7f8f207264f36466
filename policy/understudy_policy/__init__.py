"""The decision program: arrays in, arrays out. No Kubernetes, no HTTP, no torch.

Operator, simulator and judge run these same functions, so that what was measured is what acts.
"""
