"""The outside world of the autoscaler: Kubernetes, Prometheus, and the loop that ties them to the decision program."""
