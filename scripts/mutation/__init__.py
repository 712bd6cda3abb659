"""Mutation tests of the core: cosmic-ray mutates, tests that reach the mutated line are run, fastest first.

draw      where the core may be mutated, and a sample of it from a seed
contexts  which test reaches which line, and how long it takes; kept in ``.mutants/``
runner    a copy of the tree, one mutant in it, the tests
plugin    pytest's side: order, time limits, what failed
harmless  survivors that change nothing, with the reason
"""
