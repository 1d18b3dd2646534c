"""How fast Tailforge is, measured: a part a file, `python -m benchmarks.speed [PART …]` runs them."""
