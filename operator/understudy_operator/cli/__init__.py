"""The command line: `understudy`, also installed as `kubectl-understudy`."""
