"""A million images: what they cost here, and what they would take on 8, 64 and 512 GPUs, by arithmetic; a part a file.

    arithmetic.py   formulas, nothing but
    measured.py     figures of this repository
    assumed.py      figures from elsewhere, each with its source
    plan.py         stages, seconds on so many GPUs
    page.py         docs/scale.md

`python -m benchmarks.scale` writes the page. No figure stands in a text.
"""
