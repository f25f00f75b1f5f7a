"""One step of training: batches, masked passes, objective, gradients, rates, decisions."""
