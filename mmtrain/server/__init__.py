"""Serving behind HTTP: what one replica is made of; `mmtrain.serving` starts it on Ray Serve."""
