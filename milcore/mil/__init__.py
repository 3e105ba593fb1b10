"""The model theta(X) = g(sigma({f(x)})): instance encoder, pooling, classifier."""
