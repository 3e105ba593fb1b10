"""Service of predictions over HTTP: a gateway and replicas of models, on Ray Serve."""
