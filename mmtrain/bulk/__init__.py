"""Answering data of any size: reading, answers, parts; `mmtrain.batch_predict` runs it."""
