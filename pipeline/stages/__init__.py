"""The verbs: settings, prepare, drift, fit, sample, judges, validate, train, evaluate, report.

Each module has `run(params, ...)`; dvc.yaml calls `python -m pipeline.stages VERB` with the paths as arguments.
"""
