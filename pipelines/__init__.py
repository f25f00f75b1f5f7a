"""The data plane: raw corpora become shards, a schedule and a plan say what is read, a stream reads it.

Nothing here imports torch or `mmtrain`.
"""
