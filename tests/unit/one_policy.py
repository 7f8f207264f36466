"""A valid RLPolicy as the API server returns it, for tests that need one and do not care which."""


def body(
    name="shop",
    *,
    namespace="prod",
    uid="u1",
    version=1,
    generation=1,
    created="2026-01-01T00:00:00Z",
    **spec,
):
    return {
        "apiVersion": "understudy.dev/v1alpha1",
        "kind": "RLPolicy",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": str(version),
            "generation": generation,
            "creationTimestamp": created,
        },
        "spec": {
            "owner": "team-shop",
            "scaleTargetRef": {"name": spec.pop("target", name)},
            "maxReplicas": 10,
            "objective": {"latencyThreshold": "250ms"},
            **spec,
        },
    }
