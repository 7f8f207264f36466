"""A real control plane and Prometheus as plain processes, without Docker, for the demo and the tests.

`binaries` builds the servers, `plane` runs the control plane, `kubelet` plays the nodes, `prometheus`
scrapes, and `client` talks to the API server.
"""
