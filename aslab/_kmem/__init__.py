"""The allocator itself, floor by floor: each file imports only those listed before it.

words       _state        marks of a cache, and the table of their events
            _trio         a future for trio
            _clock        the loop's clock and futures
            _wakeup       waking the loop from any thread, a task by its work, a caller at its time
            _holders      a cache, as its pool sees it, and who holds which of its buffers
memory      _lingering    slots without a handle whose memory somebody can still reach
            _slab         a region and its slots; the lists of slabs
            _depot        the slabs behind the magazine, and the one lock
            _reserve      objects set aside for callers whose progress frees memory
            _filled       memory filled with one byte, and where it is not any more
limits      _account      what one pool holds, and what is asked of it
            _budget       bytes of slabs over all pools: who may grow, and in which order
            _rescue       slabs for callers that starve at the limit
            _supply       regions from a backend, and back to it
            _waiters      a waiting caller: its states, its patience
            _line         waiting callers, in order
            _held         emergency objects that callers hold
            _debug        debug letters: what is known of each object, and what is wrong with it
            _emergency    single objects for when slabs are late, and their bounds
shared      _arena        what all pools of an allocator share: supplies, limits, work queues
decisions   _handover     who gets a freed object
            _reports      what is logged and told of growth, and how long it has been late
            _growth       whether to grow and how far, whether growth is late, what to do after a failure
            _admission    who may have emergency objects made
            _working_set  how many objects a pool has needed lately
            _moving       the mover's state for one pool
together    _pool         the parts of one pool, put together
actions     _snapshot     the counters at one moment
            _invariants   all parts recount themselves
            _frees        a slot comes back
            _attempts     an emergency object is made for a waiter
            _slowpath     an allocation that finds no free object
            _errands      an allocation for a thread without an event loop
            _reclaim      memory is given back
            _arrivals     slabs that come one after another in one grow
            _worker       slabs are made
            _move         objects move, so that whole slabs become free
"""
