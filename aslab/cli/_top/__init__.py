"""``aslab top``: the caches of a running service, as slabtop shows those of the kernel.

_command   the options
_source    asking a service
_rows      one row for each cache, and their order
_text      a table for people
_screen    the same, live: needs Textual
"""
