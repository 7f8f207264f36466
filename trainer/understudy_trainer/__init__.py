"""Learning: the only room that imports torch. What leaves it is an ONNX artefact, checked by `understudy_policy`."""
