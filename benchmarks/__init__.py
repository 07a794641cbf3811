"""The runtime of a generated project, measured against what people do today: `python -m benchmarks`.

Every comparison is made in one run, ours and the alternative in turn, and reported as a ratio: absolute rates
say more about the machine than about the code. A topic is a module with a list `ROWS`, named in `TOPICS` in
`__main__.py`.
"""
