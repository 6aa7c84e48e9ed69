"""What Kolmo costs, beside what its peers cost for the same number: `kolmo bench` or `make bench`.

`run` is the command, `cases` the problems, `measure` who is timed on each, `ratios` the targets, `timing` how
time is taken, `roofline` what the machine could do, `scaling` how cost grows; `peers` holds the same problems
as users of other libraries would write them. docs/performance.md explains the table.
"""
