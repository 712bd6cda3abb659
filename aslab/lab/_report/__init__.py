"""Pages and traces that show a run.

_page  _timeline     the page of a scenario, and who did what when
_tale  _ring         the page of a story, and who waits on whom
_seeds               a story run with many seeds
_frame               the template of every page
_charts              charts over time
_figures             colours, and numbers and times as text
_bounds  _rows       how much of a large run is drawn, and in which rows
_trace               a file for Perfetto
"""
