"""The only room that imports MLflow: runs, their journal, models as files of MLflow."""
