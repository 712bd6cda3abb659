"""``aslab demo``: three acts, each with aslab and without; or one run of a checksum service.

_command                       the options, and what they choose
_files  _hashing               finding files; what a thread does: they are opened, read and hashed
_service  _resume              the service, a good example of how to use aslab; has it recovered from a fault?
_run  _processes               one run of it, with faults if wanted; in several processes
_once  _report                 a run from the walk to the last line; for people
_output  _progress             for programs; the progress bar
_play  _acts  _stage           the acts, one after another; what they are; what people see of them
_frames  _consumer             the first act; its other process
_stuck                         the second
_checksums  _plain             the third; the other way, in another process
_other  _pair  _words          another process; two figures shown live; what an act found
"""
