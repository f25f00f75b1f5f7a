"""Names of what a run's folder holds.

recipe.json      the resolved recipe; a recipe itself
checkpoints/     see `checkpoint`
bundle/          the trained model; see `bundle`
tracking/        the journal of what MLflow is told; mlruns.db beside it by default
failure.json     why a restart would not help; of one attempt alone
log.txt          what the driver and all ranks logged, of all attempts
errors.log       tracebacks of workers, and all that Ray said of processes that died
routing.json, losses.json, results.json, report.html
kept.jsonl, tradeoff.json    of a run with masks: units that subtasks keep; quality over cost
"""

RECIPE, CHECKPOINTS, BUNDLE = "recipe.json", "checkpoints", "bundle"
FAILURE, ERRORS, LOG = "failure.json", "errors.log", "log.txt"
