"""`mmtrain plan`: what a run needs, from a traced step and arithmetic."""
