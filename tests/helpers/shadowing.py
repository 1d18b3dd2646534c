"""Modules of a user's own whose names are those of ours and of packages that we import. Each raises when it is imported."""

from __future__ import annotations

from pathlib import Path

NAMES = (
    "pipeline/__init__.py", "flows/__init__.py", "tailforge/__init__.py", "prefect/__init__.py", "dvc.py", "torch.py", "ray.py",
    "uvicorn.py", "yaml.py", "logging.py",
)  # fmt: skip


def shadow(folder: Path) -> None:
    """Put them into `folder`; one that is imported leaves the file `imported` there."""
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(
            "from pathlib import Path\n"
            f"Path(__file__).parents[{len(Path(name).parts) - 1}].joinpath('imported').write_text(__name__)\n"
            "raise ImportError(f'{__name__} of the user')\n"
        )
