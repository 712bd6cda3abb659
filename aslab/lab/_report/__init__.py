"""Pages and traces of runs, to look at.

_page  _timeline     the page of a scenario, and who did what when
_tale  _ring         the page of a story, and who waits for whom
_seeds               a story run with many seeds
_frame               what every page is written into
_charts              charts over time
_figures             their colours, and numbers and times in words
_bounds  _rows       what is drawn of a large run, and in which rows
_trace               a file for Perfetto
"""
