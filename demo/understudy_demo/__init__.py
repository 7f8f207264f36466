"""The demo: a real control plane, a workload emulator and the run that a person watches."""
