"""Programs that import DVC. flows/dvc starts each as a process of its own, by path."""
