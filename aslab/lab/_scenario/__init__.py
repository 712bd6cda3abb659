"""A scenario: a service with memory that is slow, stuck or refused, from a TOML file.

_schema  _values     what a file may say
_load  _complaints   reading one, and what is wrong with it
_builtin             those that come with aslab
_machine             its memory and its backends, with their faults
_play                a run of it, from the file to the result
_workload            its tasks
_notes               what they tell while it runs
_metrics             the figures that are kept, and what is expected of them
_result  _recording  what came: the verdicts; what there is to draw
"""
