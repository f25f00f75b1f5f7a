"""The data plane: raw corpora become shards; a schedule and a plan say what a stream reads.

Nothing here imports torch or `mmtrain`.
"""
