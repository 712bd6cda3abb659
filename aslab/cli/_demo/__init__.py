"""``aslab demo``: a checksum service, with healthy memory and with memory that is stuck.

_command   the options
_files     finding files
_hashing   what a thread does: files in batches, opened, read and hashed
_service   the service, a good example of how to use aslab
_resume    has normal operation resumed after a fault?
_runs      the runs, and whether they ended well
_report    output for people
_output    output for programs
_progress  the progress bar
"""
