"""`altup-moe bench gpu`: everything that only a GPU can show, as named checks with a time budget each.

A GPU is at hand now and then, for minutes. So each check runs in a process of its own, whose crash or hang costs that
check alone; what is done is written at once, and another call goes on with what is missing. `checks` is the table,
`runner` runs it, `sizes` has the sizes for a GPU and those of a rehearsal on a CPU, and each of the other modules has
the checks of one kind. What the checks have found is compared with the planner afterwards (`planned`).
"""
