"""``aslab demo``: a checksum service, healthy and with memory that is stuck.

_command   the options, and what they mean
_files     which files there are to read
_service   the service, a good example of how to use aslab
_resume    whether normal operation has resumed after a fault
_runs      which runs there are, and whether one ended well
_report    for people
_output    for programs
_progress  a bar while it runs
"""
